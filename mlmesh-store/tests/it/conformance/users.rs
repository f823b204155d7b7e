//! Users, their keys, and what each has sent.

use std::sync::Arc;

use mlmesh_model::*;

use crate::fixtures::*;

fn user(name: &str, role: &str) -> User {
    User {
        tenant: Tenant::default(),
        name: name.parse().unwrap(),
        role: role.parse().unwrap(),
        created_at: Micros(1),
        removed_at: None,
    }
}

fn add(name: &str, role: &str) -> UserChange {
    let user = user(name, role);
    UserChange::Add { user, again: false }
}

fn key(name: &str, owner: &str, secret: &[u8]) -> ApiKey {
    ApiKey {
        name: name.into(),
        tenant: Tenant::default(),
        owner: owner.parse().unwrap(),
        sha256: Digest::of(secret),
        class: KeyClass::Interactive,
        run: None,
        created_at: Micros(2),
        revoked_at: None,
    }
}

pub(super) async fn users_change_together_with_their_keys(store: Arc<dyn Store>) {
    let audited = async || store.audit_rows(0, 100).await.unwrap().len();
    store
        .change_user(add("bob", "member"), note("user.add"))
        .await
        .unwrap();
    store
        .change_user(add("bob", "member"), note("user.add"))
        .await
        .unwrap();
    assert_eq!(audited().await, 1, "the same again is no change");
    let other = store
        .change_user(add("bob", "viewer"), note("user.add"))
        .await;
    assert!(
        matches!(other, Err(StoreError::UserExists { removed: false, .. })),
        "{other:?}"
    );

    let stranger = KeyChange::Add(key("k", "eve", b"x"));
    let refused = store.change_key(stranger, note("key.add")).await;
    assert!(matches!(refused, Err(StoreError::NoUser(_))), "{refused:?}");
    for _ in 0..2 {
        let added = KeyChange::Add(key("k", "bob", b"one"));
        store.change_key(added, note("key.add")).await.unwrap();
    }
    let taken = KeyChange::Add(key("k", "bob", b"two"));
    let refused = store.change_key(taken, note("key.add")).await;
    assert!(
        matches!(refused, Err(StoreError::KeyExists(_))),
        "{refused:?}"
    );
    let rotate = |name: &str| KeyChange::Rotate {
        tenant: Tenant::default(),
        name: name.into(),
        sha256: Digest::of(b"two"),
    };
    let rotated = store.change_key(rotate("k"), note("key.rotate")).await;
    rotated.unwrap();
    assert_eq!(store.keys().await.unwrap()[0].sha256, Digest::of(b"two"));
    let unknown = store.change_key(rotate("other"), note("key.rotate")).await;
    assert!(matches!(unknown, Err(StoreError::NoKey(_))), "{unknown:?}");

    let remove = UserChange::Remove {
        tenant: Tenant::default(),
        name: "bob".parse().unwrap(),
    };
    let removed = store
        .change_user(remove.clone(), note("user.remove"))
        .await
        .unwrap();
    assert!(removed.removed_at.is_some());
    assert_eq!(store.keys().await.unwrap(), vec![]);
    let gone = store.change_user(remove, note("user.remove")).await;
    assert!(matches!(gone, Err(StoreError::NoUser(_))), "{gone:?}");
    // What belongs to the name does not become somebody else's by accident.
    let refused = store
        .change_user(add("bob", "member"), note("user.add"))
        .await;
    assert!(
        matches!(refused, Err(StoreError::UserExists { removed: true, .. })),
        "{refused:?}"
    );
    let again = UserChange::Add {
        user: user("bob", "viewer"),
        again: true,
    };
    let back = store.change_user(again, note("user.add")).await.unwrap();
    assert_eq!((back.role.as_str(), back.removed_at), ("viewer", None));
    assert_eq!(store.keys().await.unwrap(), vec![], "no key comes back");
    assert_eq!(store.users().await.unwrap(), [back]);
}

pub(super) async fn the_last_admin_stays(store: Arc<dyn Store>) {
    for (name, role) in [("ada", "admin"), ("bob", "member")] {
        let added = store.change_user(add(name, role), note("user.add")).await;
        added.unwrap();
    }
    let role = |name: &str, role: &str| UserChange::Role {
        tenant: Tenant::default(),
        name: name.parse().unwrap(),
        role: role.parse().unwrap(),
    };
    let remove = |name: &str| UserChange::Remove {
        tenant: Tenant::default(),
        name: name.parse().unwrap(),
    };
    let rows = store.audit_rows(0, 100).await.unwrap().len();
    for change in [role("ada", "operator"), remove("ada")] {
        let refused = store.change_user(change, note("user.role")).await;
        assert!(
            matches!(refused, Err(StoreError::LastAdmin(_))),
            "{refused:?}"
        );
    }
    assert_eq!(store.audit_rows(0, 100).await.unwrap().len(), rows);
    store
        .change_user(role("bob", "admin"), note("user.role"))
        .await
        .unwrap();
    store
        .change_user(remove("ada"), note("user.remove"))
        .await
        .unwrap();
    // A removed admin does not count.
    let refused = store.change_user(remove("bob"), note("user.remove")).await;
    assert!(
        matches!(refused, Err(StoreError::LastAdmin(_))),
        "{refused:?}"
    );
}

pub(super) async fn what_somebody_has_sent_is_known_of_them_alone(store: Arc<dyn Store>) {
    let (tenant, bob, eve): (Tenant, Owner, Owner) = (
        Tenant::default(),
        "bob".parse().unwrap(),
        "eve".parse().unwrap(),
    );
    let object = |text: &[u8]| ObjectId(Digest::of(text));
    let (one, two) = (object(b"1"), object(b"2"));
    for _ in 0..2 {
        store.possess(&tenant, &bob, vec![one]).await.unwrap();
    }
    for (who, expected) in [(&bob, [false, true]), (&eve, [false, false])] {
        let found = store.possesses(&tenant, who, vec![two, one]).await.unwrap();
        assert_eq!(found, expected, "{who}");
    }

    // More than one statement's worth, some of them twice, in the order asked for.
    let object = |number: u32| ObjectId(Digest::of(&number.to_le_bytes()));
    let sent: Vec<ObjectId> = (0..9_000).map(|number| object(number / 2 * 3)).collect();
    let asked: Vec<ObjectId> = (0..13_500).rev().map(object).collect();
    for _ in 0..2 {
        store.possess(&tenant, &eve, sent.clone()).await.unwrap();
        let found = store.possesses(&tenant, &eve, asked.clone()).await.unwrap();
        let expected: Vec<bool> = (0..13_500).rev().map(|number| number % 3 == 0).collect();
        assert!(found == expected, "of many");
    }
    let stranger: Tenant = "other".parse().unwrap();
    for (tenant, who) in [(&tenant, &bob), (&stranger, &eve)] {
        let found = store.possesses(tenant, who, asked.clone()).await.unwrap();
        assert!(!found.contains(&true), "{who}");
    }
    store.possess(&tenant, &eve, vec![]).await.unwrap();
    let none = store.possesses(&tenant, &eve, vec![]).await.unwrap();
    assert_eq!(none, [false; 0]);
}
