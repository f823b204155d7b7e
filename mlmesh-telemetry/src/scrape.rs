//! Fetches a runtime's page of metrics and says what is on it.
//!
//! One request at a time over a connection of its own, within one time for everything:
//! a runtime that hangs costs that time and no more. Who calls says how often.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::adapter::{Adapter, State, recognised};
use crate::exposition::{PAGE_BYTES_MAX, Page, PageError};

/// Where a runtime's metrics are.
#[derive(Debug, Clone)]
pub struct MetricsPage {
    /// Addresses of its host, the first that answers counts.
    pub addresses: Vec<SocketAddr>,
    /// What the request says as its host.
    pub host: String,
    /// From the root.
    pub path: String,
    /// The runtime, if it is known; else it is recognised by its page.
    pub adapter: Option<&'static Adapter>,
}

/// What was on a page.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Whose page it is.
    pub adapter: &'static Adapter,
    /// What it says.
    pub state: State,
    /// Lines of it that do not parse.
    pub defects: u64,
}

/// Why there is no observation.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// No connection, or it broke.
    #[error("`{host}` does not answer")]
    Connect {
        /// Whom was asked.
        host: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// What came is no response.
    #[error("`{host}` does not speak HTTP/1.1")]
    Http {
        /// Whom was asked.
        host: String,
        /// What went wrong.
        #[source]
        source: hyper::Error,
    },
    /// Another status than 200.
    #[error("`{path}` answers {status}")]
    Status {
        /// What was asked for.
        path: String,
        /// What came.
        status: StatusCode,
    },
    /// It took too long.
    #[error("no whole answer within {} ms", within.as_millis())]
    TimedOut {
        /// How long was waited.
        within: Duration,
    },
    /// It is no text.
    #[error("the page is not UTF-8")]
    NotText,
    /// It is too large, or has too much on it.
    #[error(transparent)]
    Page(#[from] PageError),
    /// No runtime that is known has such a page.
    #[error("the page has {samples} samples, and none of a runtime that is known")]
    Unknown {
        /// How many there are.
        samples: usize,
    },
}

impl MetricsPage {
    /// Fetches the page.
    pub async fn observe(&self, within: Duration) -> Result<Observation, ScrapeError> {
        let fetched = tokio::time::timeout(within, self.fetch()).await;
        let text = fetched.map_err(|_| ScrapeError::TimedOut { within })??;
        let page = Page::read(&text)?;
        let adapter = self.adapter.or_else(|| recognised(&page));
        let adapter = adapter.ok_or(ScrapeError::Unknown {
            samples: page.samples.len(),
        })?;
        Ok(Observation {
            adapter,
            state: adapter.state(&page),
            defects: page.defects,
        })
    }

    async fn fetch(&self) -> Result<String, ScrapeError> {
        let broken = |source| ScrapeError::Connect {
            host: self.host.clone(),
            source,
        };
        let no_http = |source| ScrapeError::Http {
            host: self.host.clone(),
            source,
        };
        let stream = TcpStream::connect(&*self.addresses).await.map_err(broken)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(no_http)?;
        let request = Request::get(&self.path)
            .header(HOST, &self.host)
            .header(ACCEPT, "text/plain;version=0.0.4, */*;q=0.1")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(std::io::Error::other(error)))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(no_http)?;
            let status = response.status();
            if status != StatusCode::OK {
                return Err(ScrapeError::Status {
                    path: self.path.clone(),
                    status,
                });
            }
            let told = response.body().size_hint().lower();
            if told > PAGE_BYTES_MAX as u64 {
                let bytes = usize::try_from(told).unwrap_or(usize::MAX);
                return Err(PageError::TooLarge { bytes }.into());
            }
            let limited = Limited::new(response.into_body(), PAGE_BYTES_MAX);
            match limited.collect().await {
                Ok(body) => Ok(body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => {
                    let bytes = PAGE_BYTES_MAX + 1;
                    Err(PageError::TooLarge { bytes }.into())
                }
                Err(error) => Err(broken(std::io::Error::other(error))),
            }
        };
        // The connection works as long as its answer is waited for. Where it ends first,
        // the answer has everything that came, or the reason why that is not all.
        let mut answer = pin!(answer);
        let bytes = tokio::select! {
            biased;
            bytes = &mut answer => bytes?,
            _ = connection => answer.await?,
        };
        String::from_utf8(bytes.into()).map_err(|_| ScrapeError::NotText)
    }
}
