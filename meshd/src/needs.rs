//! What a key must allow before a route answers, and which request is which route's. The
//! values stand in the table of routes; which role has which permission, in the model.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::extract::MatchedPath;
use axum::http::Method;
use mlmesh_model::Permission;

use crate::routes::routes;

/// What a key must allow before a route's handler sees the request. A route cannot be
/// written without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Not even a key.
    Nothing,
    /// The key of any user.
    Key,
    /// This permission.
    May(Permission),
    /// The first permission; and the second, which its handler asks for, where it is
    /// about something that belongs to somebody else.
    Own(Permission, Permission),
    /// The first permission; or the token of an attempt that has the second, for its
    /// own run.
    MayOrAttempt(Permission, Permission),
    /// The token of an attempt, for its own run.
    Attempt(Permission),
}

impl Needs {
    /// What a user's role has to allow.
    pub(crate) fn of_user(self) -> Option<Permission> {
        match self {
            Self::Nothing | Self::Key => None,
            Self::May(permission)
            | Self::Own(permission, _)
            | Self::MayOrAttempt(permission, _)
            | Self::Attempt(permission) => Some(permission),
        }
    }

    /// What the role of attempts has to allow; none where no attempt is let in.
    pub(crate) fn of_attempt(self) -> Option<Permission> {
        match self {
            Self::MayOrAttempt(_, permission) | Self::Attempt(permission) => Some(permission),
            Self::Nothing | Self::Key | Self::May(_) | Self::Own(..) => None,
        }
    }
}

/// What the route needs that answers such a request; a key where there is none.
pub(crate) fn needs(method: &Method, path: Option<&MatchedPath>) -> Needs {
    static TABLE: LazyLock<HashMap<&'static str, Vec<(Method, Needs)>>> = LazyLock::new(|| {
        let mut table: HashMap<_, Vec<_>> = HashMap::new();
        for route in routes() {
            let of_path = table.entry(route.path).or_default();
            of_path.push((route.method, route.needs));
        }
        table
    });
    let method = match *method {
        Method::HEAD => &Method::GET,
        _ => method,
    };
    let of_path = path.and_then(|path| TABLE.get(path.as_str()));
    let mut of_path = of_path.into_iter().flatten();
    let found = of_path.find(|(known, _)| known == method);
    found.map_or(Needs::Key, |(_, needs)| *needs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlmesh_model::BuiltIn;

    /// Written by hand: admin, operator, member, viewer, attempt. `y` for everybody's,
    /// `o` for one's own only, `-` not at all.
    const TABLE: &[(&str, &str)] = &[
        ("GET /health/live", "yyyyy"),
        ("GET /health/ready", "yyyyy"),
        ("GET /metrics", "yyyy-"),
        ("GET /openapi.json", "yyyy-"),
        ("POST /v1/daemon/stop", "y----"),
        ("POST /v1/scrub", "yy---"),
        ("GET /v1/scrub", "yy---"),
        ("POST /v1/prune", "yy---"),
        ("POST /v1/explain", "yyy--"),
        ("POST /v1/runs", "yyy--"),
        ("GET /v1/runs", "yyyy-"),
        ("GET /v1/status", "yyyy-"),
        ("GET /v1/runs/{run}", "yyyyo"),
        ("GET /v1/runs/{run}/attempts", "yyyyo"),
        ("GET /v1/runs/{run}/points", "yyyy-"),
        ("GET /v1/runs/{run}/manifest", "yyyy-"),
        ("GET /v1/runs/{run}/validation", "yyo--"),
        ("GET /v1/commits/{commit}/validation", "yyo--"),
        ("GET /v1/runs/{run}/logs", "yoo--"),
        ("GET /v1/runs/{run}/outputs", "yoo--"),
        ("POST /v1/runs/{run}/metrics", "----o"),
        ("POST /v1/runs/{run}/labels", "yyo--"),
        ("POST /v1/runs/{run}/cancel", "yyo--"),
        ("POST /v1/cancel", "yyo--"),
        ("POST /v1/runs/{run}/retry", "yyo--"),
        ("POST /v1/runs/{run}/reproduce", "yoo--"),
        ("GET /v1/runs/{run}/reproductions", "yyyy-"),
        ("POST /v1/runs/{run}/statement", "yyo--"),
        ("GET /v1/services", "yyyy-"),
        ("GET /v1/endpoints", "yyyy-"),
        ("GET /v1/models", "yyyy-"),
        ("POST /v1/services/{service}/models/{model}/load", "yyo--"),
        ("POST /v1/services/{service}/models/{model}/unload", "yyo--"),
        ("POST /v1/services/{service}/scale", "yyo--"),
        ("POST /v1/services/{service}/stop", "yyo--"),
        ("GET /v1/objects/{object}/maker", "yoo--"),
        ("GET /v1/events", "yyyy-"),
        ("POST /v1/imports", "yyy--"),
        ("GET /v1/objects/{object}", "yoo--"),
        ("POST /v1/objects/have", "yyy--"),
        ("POST /v1/objects/batch", "yyy--"),
        ("POST /v1/commits", "yyy--"),
        ("GET /v1/uploads/{object}", "yyy--"),
        ("POST /v1/uploads/{object}", "yyy--"),
        ("POST /v1/chunks/missing", "yyy--"),
        ("POST /v1/chunks", "yyy--"),
        ("GET /v1/datasets", "yyyy-"),
        ("POST /v1/datasets", "yyy--"),
        ("POST /v1/datasets/{name}/{version}/verify", "yyy--"),
        ("DELETE /v1/datasets/{name}/{version}", "yyo--"),
        ("GET /v1/tellings", "yyyy-"),
        ("GET /v1/pins", "yyyy-"),
        ("POST /v1/pins", "yyo--"),
        ("DELETE /v1/pins/{target}", "yyo--"),
        ("GET /v1/audit", "yy---"),
        ("POST /v1/audit/verify", "yy---"),
        ("GET /v1/secrets", "yyy--"),
        ("PUT /v1/secrets/{name}", "yyy--"),
        ("DELETE /v1/secrets/{name}", "yyy--"),
        ("GET /v1/who", "yyyy-"),
        ("GET /v1/users", "yy---"),
        ("POST /v1/users", "y----"),
        ("POST /v1/users/{name}/role", "y----"),
        ("POST /v1/users/{name}/remove", "y----"),
        ("GET /v1/keys", "yyyy-"),
        ("POST /v1/keys", "y----"),
        ("POST /v1/keys/{name}/rotate", "yooo-"),
        ("DELETE /v1/keys/{name}", "yooo-"),
        ("GET /v1/roles", "yyyy-"),
        ("POST /v1/roles/reload", "y----"),
    ];

    fn letter(role: BuiltIn, needs: Needs) -> char {
        let allowed = role.permissions();
        let may = |one: Option<Permission>| one.is_some_and(|one| allowed.has(one));
        match (needs, role) {
            (Needs::Nothing, _) => 'y',
            (_, BuiltIn::Attempt) if may(needs.of_attempt()) => 'o',
            (_, BuiltIn::Attempt) => '-',
            (Needs::Key, _) => 'y',
            (Needs::Own(own, _), _) if !allowed.has(own) => '-',
            (Needs::Own(_, others), _) if !allowed.has(others) => 'o',
            _ if may(needs.of_user()) => 'y',
            _ => '-',
        }
    }

    #[test]
    fn each_route_is_open_to_the_roles_of_the_table() {
        let told: HashMap<&str, &str> = TABLE.iter().copied().collect();
        let mut seen = 0;
        for route in routes() {
            let name = format!("{} {}", route.method, route.path);
            let letters = BuiltIn::ALL.map(|role| letter(role, route.needs));
            let letters = letters.iter().collect::<String>();
            assert_eq!(told.get(&*name).copied(), Some(&*letters), "{name}");
            seen += 1;
        }
        assert_eq!(seen, TABLE.len(), "the table names a route that is none");
    }
}
