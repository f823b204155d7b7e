//! The `Store` port on both backends: each method names its work and hands it to
//! the backend's writer or to one of its readers.

/// Implements [`Store`](mlmesh_model::Store) for a type with `write` and `read`.
macro_rules! store_port {
    ($store:ty) => {
        impl mlmesh_model::Store for $store {
            fn submit(&self, submit: Submit) -> BoxFuture<'_, Result<Submitted, StoreError>> {
                self.writer
                    .write(WriteKind::Submit, |tx| Box::pin(write::submit(tx, submit)))
            }

            fn import(&self, import: Import) -> BoxFuture<'_, Result<(), StoreError>> {
                self.writer.write(WriteKind::Submit, |tx| {
                    Box::pin(crate::import::import(tx, import))
                })
            }

            fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Attempt, StoreError>> {
                self.writer
                    .write(WriteKind::Claim, |tx| Box::pin(write::claim(tx, claim)))
            }

            fn advance(&self, advance: Advance) -> BoxFuture<'_, Result<Run, StoreError>> {
                self.writer.write(WriteKind::Advance, |tx| {
                    Box::pin(write::advance(tx, advance))
                })
            }

            fn move_unleased(
                &self,
                change: UnleasedMove,
            ) -> BoxFuture<'_, Result<Moved, StoreError>> {
                self.writer.write(WriteKind::Move, |tx| {
                    Box::pin(moves::move_unleased(tx, change))
                })
            }

            fn answered(
                &self,
                tenant: &Tenant,
                key: &str,
                request_sha256: Digest,
            ) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
                let (tenant, key) = (tenant.clone(), key.to_owned());
                self.read(move |sql| {
                    Box::pin(
                        async move { read::answered(sql, &tenant, &key, &request_sha256).await },
                    )
                })
            }

            fn set_metrics(
                &self,
                run: RunId,
                token: FencingToken,
                metrics: BTreeMap<String, MetricSummary>,
            ) -> BoxFuture<'_, Result<(), StoreError>> {
                self.writer.write(WriteKind::Other, move |tx| {
                    Box::pin(write::set_metrics(tx, run, token, metrics))
                })
            }

            fn run(
                &self,
                tenant: &Tenant,
                id: RunId,
            ) -> BoxFuture<'_, Result<Option<Run>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| Box::pin(async move { read::run(sql, &tenant, id).await }))
            }

            fn runs_by_id(
                &self,
                tenant: &Tenant,
                ids: Vec<RunId>,
            ) -> BoxFuture<'_, Result<Vec<Run>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| {
                    Box::pin(async move { read::runs_by_id(sql, &tenant, &ids).await })
                })
            }

            fn ids_by_prefix(
                &self,
                tenant: &Tenant,
                prefix: &str,
                limit: u32,
            ) -> BoxFuture<'_, Result<Vec<RunId>, StoreError>> {
                let (tenant, prefix) = (tenant.clone(), prefix.to_owned());
                self.read(move |sql| {
                    Box::pin(async move { read::ids_by_prefix(sql, &tenant, &prefix, limit).await })
                })
            }

            fn runs(&self, query: RunQuery) -> BoxFuture<'_, Result<Vec<Run>, StoreError>> {
                self.read(move |sql| Box::pin(async move { read::runs(sql, &query).await }))
            }

            fn find(&self, search: RunSearch) -> BoxFuture<'_, Result<Vec<Run>, StoreError>> {
                self.read(move |sql| Box::pin(async move { find::find(sql, &search).await }))
            }

            fn counts(
                &self,
                tenant: &Tenant,
            ) -> BoxFuture<'_, Result<BTreeMap<Phase, u64>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| Box::pin(async move { read::counts(sql, &tenant).await }))
            }

            fn sweep_counts(
                &self,
                tenant: &Tenant,
                sweep: RunId,
            ) -> BoxFuture<'_, Result<Option<BTreeMap<Phase, u64>>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| {
                    Box::pin(async move { read::sweep_counts(sql, &tenant, sweep).await })
                })
            }

            fn open_runs(&self) -> BoxFuture<'_, Result<Vec<Run>, StoreError>> {
                self.read(|sql| Box::pin(read::open_runs(sql)))
            }

            fn attempts(&self, run: RunId) -> BoxFuture<'_, Result<Vec<Attempt>, StoreError>> {
                self.read(move |sql| Box::pin(read::attempts(sql, run)))
            }

            fn events(
                &self,
                tenant: &Tenant,
                after: Sequence,
                limit: u32,
            ) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| {
                    Box::pin(async move { read::events(sql, &tenant, after, limit).await })
                })
            }

            fn last_event(&self) -> BoxFuture<'_, Result<Sequence, StoreError>> {
                self.read(|sql| Box::pin(read::last_event(sql)))
            }

            fn record(
                &self,
                event: Option<Event>,
                audit: Option<AuditNote>,
            ) -> BoxFuture<'_, Result<(), StoreError>> {
                self.writer.write(WriteKind::Other, |tx| {
                    Box::pin(write::record(tx, event, audit))
                })
            }

            fn audit_rows(
                &self,
                after: u64,
                limit: u32,
            ) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>> {
                self.read(move |sql| Box::pin(read::audit_rows(sql, after, limit)))
            }

            fn put_dataset(
                &self,
                dataset: Dataset,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<(), StoreError>> {
                self.writer.write(WriteKind::Other, |tx| {
                    Box::pin(catalog::put_dataset(tx, dataset, audit))
                })
            }

            fn datasets(&self, tenant: &Tenant) -> BoxFuture<'_, Result<Vec<Dataset>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| Box::pin(async move { catalog::datasets(sql, &tenant).await }))
            }

            fn remove_dataset(
                &self,
                tenant: &Tenant,
                name: &Name,
                version: &str,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<bool, StoreError>> {
                let (tenant, name, version) = (tenant.clone(), name.clone(), version.to_owned());
                self.writer.write(WriteKind::Other, move |tx| {
                    Box::pin(async move {
                        catalog::remove_dataset(tx, &tenant, &name, &version, audit).await
                    })
                })
            }

            fn put_key(
                &self,
                key: ApiKey,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<(), StoreError>> {
                self.writer.write(WriteKind::Other, |tx| {
                    Box::pin(catalog::put_key(tx, key, audit))
                })
            }

            fn keys(&self) -> BoxFuture<'_, Result<Vec<ApiKey>, StoreError>> {
                self.read(|sql| Box::pin(catalog::keys(sql)))
            }

            fn users(&self) -> BoxFuture<'_, Result<Vec<User>, StoreError>> {
                self.read(|sql| Box::pin(users::users(sql)))
            }

            fn change_user(
                &self,
                change: UserChange,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<User, StoreError>> {
                self.writer.write(WriteKind::Other, |tx| {
                    Box::pin(users::change_user(tx, change, audit))
                })
            }

            fn change_key(
                &self,
                change: KeyChange,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<(), StoreError>> {
                self.writer.write(WriteKind::Other, |tx| {
                    Box::pin(users::change_key(tx, change, audit))
                })
            }

            fn possess(
                &self,
                tenant: &Tenant,
                owner: &Owner,
                objects: Vec<ObjectId>,
            ) -> BoxFuture<'_, Result<(), StoreError>> {
                let (tenant, owner) = (tenant.clone(), owner.clone());
                self.writer.write(WriteKind::Other, move |tx| {
                    Box::pin(async move { users::possess(tx, &tenant, &owner, &objects).await })
                })
            }

            fn possesses(
                &self,
                tenant: &Tenant,
                owner: &Owner,
                objects: Vec<ObjectId>,
            ) -> BoxFuture<'_, Result<Vec<bool>, StoreError>> {
                let (tenant, owner) = (tenant.clone(), owner.clone());
                self.read(move |sql| {
                    Box::pin(async move { users::possesses(sql, &tenant, &owner, &objects).await })
                })
            }

            fn attempt_key(&self, run: RunId) -> BoxFuture<'_, Result<Option<ApiKey>, StoreError>> {
                self.read(move |sql| Box::pin(catalog::attempt_key(sql, run)))
            }

            fn pin(&self, pin: Pin, audit: AuditNote) -> BoxFuture<'_, Result<bool, StoreError>> {
                self.writer
                    .write(WriteKind::Other, |tx| Box::pin(pins::pin(tx, pin, audit)))
            }

            fn unpin(
                &self,
                tenant: &Tenant,
                target: PinTarget,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<bool, StoreError>> {
                let tenant = tenant.clone();
                self.writer.write(WriteKind::Other, move |tx| {
                    Box::pin(async move { pins::unpin(tx, &tenant, target, audit).await })
                })
            }

            fn pins(&self, tenant: &Tenant) -> BoxFuture<'_, Result<Vec<Pin>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| Box::pin(async move { pins::pins(sql, &tenant).await }))
            }

            fn judge(
                &self,
                judgement: Reproduction,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<bool, StoreError>> {
                self.writer.write(WriteKind::Judge, |tx| {
                    Box::pin(reproductions::judge(tx, judgement, audit))
                })
            }

            fn repetitions(
                &self,
                tenant: &Tenant,
                run: RunId,
            ) -> BoxFuture<'_, Result<Vec<Repetition>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| {
                    Box::pin(async move { reproductions::repetitions(sql, &tenant, run).await })
                })
            }

            fn attest(
                &self,
                tenant: &Tenant,
                repetition: RunId,
                statement: SignedStatement,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<bool, StoreError>> {
                let tenant = tenant.clone();
                self.writer.write(WriteKind::Judge, move |tx| {
                    Box::pin(async move {
                        reproductions::attest(tx, &tenant, repetition, statement, audit).await
                    })
                })
            }

            fn untold(&self) -> BoxFuture<'_, Result<Vec<Untold>, StoreError>> {
                self.read(|sql| Box::pin(tellings::untold(sql)))
            }

            fn told(&self, told: Told) -> BoxFuture<'_, Result<(), StoreError>> {
                self.writer
                    .write(WriteKind::Other, |tx| Box::pin(tellings::told(tx, told)))
            }

            fn tellings(
                &self,
                tenant: &Tenant,
                run: Option<RunId>,
            ) -> BoxFuture<'_, Result<Vec<Telling>, StoreError>> {
                let tenant = tenant.clone();
                self.read(move |sql| {
                    Box::pin(async move { tellings::tellings(sql, &tenant, run).await })
                })
            }

            fn unjudged(&self) -> BoxFuture<'_, Result<Vec<Run>, StoreError>> {
                self.read(|sql| Box::pin(reproductions::unjudged(sql)))
            }

            fn label(&self, change: LabelChange) -> BoxFuture<'_, Result<Labels, StoreError>> {
                self.writer
                    .write(WriteKind::Other, |tx| Box::pin(labels::label(tx, change)))
            }

            fn references(&self) -> BoxFuture<'_, Result<References, StoreError>> {
                self.read(|sql| Box::pin(catalog::references(sql)))
            }

            fn prune_runs(
                &self,
                tenant: &Tenant,
                ended_before: Micros,
                audit: AuditNote,
            ) -> BoxFuture<'_, Result<Vec<RunId>, StoreError>> {
                let tenant = tenant.clone();
                self.writer.write(WriteKind::Other, move |tx| {
                    Box::pin(
                        async move { catalog::prune_runs(tx, &tenant, ended_before, audit).await },
                    )
                })
            }

            fn check(&self) -> BoxFuture<'_, Result<(), StoreError>> {
                self.writer
                    .write(WriteKind::Other, |tx| Box::pin(catalog::check(tx)))
            }
        }
    };
}

use std::collections::BTreeMap;

use mlmesh_model::{
    Advance, ApiKey, Attempt, AuditNote, AuditRow, BoxFuture, Claim, Dataset, Digest, Event,
    FencingToken, Import, KeyChange, LabelChange, Labels, MetricSummary, Micros, Moved, Name,
    ObjectId, Owner, Phase, Pin, PinTarget, References, Repetition, Reproduction, Run, RunId,
    RunQuery, RunSearch, Sequence, SignedStatement, StoreError, Submit, Submitted, Telling, Tenant,
    Told, UnleasedMove, Untold, User, UserChange,
};

use crate::crash::WriteKind;
use crate::postgres::PostgresStore;
use crate::sqlite::SqliteStore;
use crate::{catalog, find, labels, moves, pins, read, reproductions, tellings, users, write};

store_port!(SqliteStore);
store_port!(PostgresStore);
