//! Events: a page of them, or a WebSocket that goes on as they are committed.
//!
//! ```text
//!   ?after=SEQ ─► store.events ─► frames ─┐      the store's watch says that there
//!        ▲          (a page)              │      is more; nothing polls
//!        └──────── watch.changed() ◄──────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Extension;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use mlmesh_api::{EVENTS_SCHEMA, EventDto, EventsDto};
use mlmesh_control::Caller;
use mlmesh_model::{Sequence, Tenant};
use tokio::time::timeout;

use super::page_rows;
use crate::daemon::Daemon;
use crate::http::front::Standing;
use crate::http::query::Query;
use crate::limits::{
    EVENT_FRAME_BYTES_MAX, EVENT_PING_INTERVAL, EVENT_SEND_TIMEOUT, EVENT_STREAMS_MAX,
    PAGE_ROWS_MAX,
};
use crate::reply::{ApiError, ApiResult, ok};

pub(crate) async fn events(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    Extension(standing): Extension<Standing>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> ApiResult<Response> {
    let query = Query::parse(query.as_deref(), &["after", "limit"])?;
    let after = query
        .number("after", "the sequence of an event")?
        .unwrap_or(0);
    let upgrade = match upgrade {
        Ok(upgrade) => Some(upgrade),
        Err(rejection) if headers.contains_key(header::UPGRADE) => {
            return Err(ApiError::bad_request(
                format!("this is no WebSocket handshake: {}", rejection.body_text()),
                "RFC 6455 says how one begins; without `Upgrade` the route answers with a page",
            ));
        }
        Err(_) => None,
    };
    let Some(upgrade) = upgrade else {
        let events = daemon
            .store
            .events(&caller.tenant, Sequence(after), page_rows(&query)?)
            .await?;
        return Ok(ok(&EventsDto {
            schema: EVENTS_SCHEMA.to_owned(),
            next_cursor: events.last().map_or(after, |event| event.seq.0),
            events: events.iter().map(EventDto::from).collect(),
        }));
    };
    let place = Arc::clone(&daemon.event_streams)
        .try_acquire_owned()
        .map_err(|_| {
            ApiError::unavailable(format!(
                "{EVENT_STREAMS_MAX} event streams are open already"
            ))
        })?;
    let token = daemon.tasks.token();
    Ok(upgrade
        .max_message_size(EVENT_FRAME_BYTES_MAX)
        .max_frame_size(EVENT_FRAME_BYTES_MAX)
        .on_upgrade(move |socket| async move {
            daemon.metrics.event_streams.fetch_add(1, Ordering::Relaxed);
            stream(&daemon, &caller.tenant, standing, Sequence(after), socket).await;
            daemon.metrics.event_streams.fetch_sub(1, Ordering::Relaxed);
            drop((place, token));
        }))
}

async fn stream(
    daemon: &Daemon,
    tenant: &Tenant,
    standing: Standing,
    after: Sequence,
    mut socket: WebSocket,
) {
    let mut after = after;
    let lost = async {
        match standing {
            Some((sha256, permission)) => daemon.keys.lost(sha256, permission).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(lost);
    let mut commits = daemon.commits.clone();
    loop {
        commits.mark_unchanged();
        match send_new(daemon, tenant, &mut after, &mut socket).await {
            Sent::All => {}
            Sent::Part if standing.is_none_or(|(sha256, one)| daemon.keys.stands(sha256, one)) => {
                continue;
            }
            Sent::Part => {}
            Sent::Broken => return,
        }
        let next = tokio::select! {
            () = &mut lost => {
                close(&mut socket, close_code::POLICY, "the key was revoked, or may not do this any more").await;
                return;
            }
            () = daemon.stopping.token().cancelled() => {
                close(&mut socket, close_code::AWAY, "the daemon is on its way down").await;
                return;
            }
            changed = commits.changed() => changed.is_ok(),
            received = socket.recv() => matches!(received, Some(Ok(message)) if !matches!(message, Message::Close(_))),
            () = tokio::time::sleep(EVENT_PING_INTERVAL) => {
                let ping = socket.send(Message::Ping(Vec::new().into()));
                matches!(timeout(EVENT_SEND_TIMEOUT, ping).await, Ok(Ok(())))
            }
        };
        if !next {
            return;
        }
    }
}

async fn close(socket: &mut WebSocket, code: u16, reason: &'static str) {
    let reason = CloseFrame {
        code,
        reason: reason.into(),
    };
    // The other side may have gone first.
    let _ = timeout(
        EVENT_SEND_TIMEOUT,
        socket.send(Message::Close(Some(reason))),
    )
    .await;
}

enum Sent {
    /// Nothing more is there now.
    All,
    /// There may be more.
    Part,
    /// Nobody listens, or the store is away.
    Broken,
}

async fn send_new(
    daemon: &Daemon,
    tenant: &Tenant,
    after: &mut Sequence,
    socket: &mut WebSocket,
) -> Sent {
    let events = match daemon.store.events(tenant, *after, PAGE_ROWS_MAX).await {
        Ok(events) => events,
        Err(error) => {
            tracing::warn!(%error, "events could not be read");
            return Sent::Broken;
        }
    };
    for event in &events {
        let Ok(text) = serde_json::to_string(&EventDto::from(event)) else {
            return Sent::Broken;
        };
        let sent = timeout(EVENT_SEND_TIMEOUT, socket.send(Message::Text(text.into()))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return Sent::Broken;
        }
        daemon
            .metrics
            .events_sent_total
            .fetch_add(1, Ordering::Relaxed);
        *after = event.seq;
    }
    match events.len() as u32 >= PAGE_ROWS_MAX {
        true => Sent::Part,
        false => Sent::All,
    }
}
