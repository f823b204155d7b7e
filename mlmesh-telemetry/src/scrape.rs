//! Fetches a runtime's page of metrics and says what is on it.
//!
//! One request at a time, within one time for everything: a runtime that hangs costs that
//! time and no more. The connection is kept for some pages, and then made anew, which
//! says how long the way there and back is. Who calls says how often.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::adapter::{Adapter, State, recognised};
use crate::exposition::{PAGE_BYTES_MAX, Page, PageError};

/// Pages that are fetched over one connection.
const PAGES_MAX: u32 = 10;
/// A connection takes no more than this share of the time for a page.
const CONNECT_SHARE: u32 = 2;

/// Where a runtime's metrics are.
#[derive(Debug)]
pub struct MetricsPage {
    /// Addresses of its host, the first that answers counts.
    pub addresses: Vec<SocketAddr>,
    /// What the request says as its host.
    pub host: String,
    /// From the root.
    pub path: String,
    /// The runtime, if it is known; else it is recognised by its page.
    pub adapter: Option<&'static Adapter>,
    /// How long a connection took, if the newest try made one.
    pub connected: Option<Duration>,
    kept: Option<Kept>,
}

/// A connection that is there.
struct Kept {
    sender: SendRequest<Empty<Bytes>>,
    /// Works as long as it is polled.
    connection: Pin<Box<dyn Future<Output = hyper::Result<()>>>>,
    pages: u32,
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
    /// No connection.
    #[error("`{host}` does not answer")]
    Connect {
        /// Whom was asked.
        host: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The answer broke off.
    #[error("`{host}` breaks off")]
    Broken {
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

impl ScrapeError {
    /// One word for it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::Unknown { .. } => "unrecognised",
            Self::Broken { .. }
            | Self::Http { .. }
            | Self::Status { .. }
            | Self::NotText
            | Self::Page(_) => "no_page",
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Kept({} pages)", self.pages)
    }
}

impl MetricsPage {
    /// A page that was not asked for so far.
    pub fn new(
        addresses: Vec<SocketAddr>,
        host: String,
        path: String,
        adapter: Option<&'static Adapter>,
    ) -> Self {
        Self {
            addresses,
            host,
            path,
            adapter,
            connected: None,
            kept: None,
        }
    }

    /// Fetches the page.
    pub async fn observe(&mut self, within: Duration) -> Result<Observation, ScrapeError> {
        let fetched = tokio::time::timeout(within, self.fetch(within)).await;
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

    async fn fetch(&mut self, within: Duration) -> Result<String, ScrapeError> {
        self.connected = None;
        let kept = self.kept.take().filter(|kept| kept.pages < PAGES_MAX);
        if let Some(kept) = kept
            && let Ok(text) = self.ask(kept).await
        {
            return Ok(text);
        }
        // An idle connection may have ended, which says nothing.
        let stream = self.connect(within / CONNECT_SHARE).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.no_http(source))?;
        let kept = Kept {
            sender,
            connection: Box::pin(connection),
            pages: 0,
        };
        self.ask(kept).await
    }

    /// Makes a connection and lets it go.
    pub async fn reach(&mut self, within: Duration) -> Result<(), ScrapeError> {
        self.connect(within).await.map(drop)
    }

    async fn connect(&mut self, within: Duration) -> Result<TcpStream, ScrapeError> {
        self.connected = None;
        let began = Instant::now();
        let connecting = TcpStream::connect(&*self.addresses);
        let connected = tokio::time::timeout(within, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|source| ScrapeError::Connect {
            host: self.host.clone(),
            source,
        })?;
        self.connected = Some(began.elapsed());
        Ok(stream)
    }

    /// One request, whose connection is kept if all of the answer came.
    async fn ask(&mut self, kept: Kept) -> Result<String, ScrapeError> {
        let request = Request::get(&self.path)
            .header(HOST, &self.host)
            .header(ACCEPT, "text/plain;version=0.0.4, */*;q=0.1")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.broken(std::io::Error::other(error)))?;
        let Kept {
            mut sender,
            mut connection,
            pages,
        } = kept;
        let (bytes, connection) = {
            let sender = &mut sender;
            let answer = async {
                sender.ready().await.map_err(|error| self.no_http(error))?;
                let response = sender.send_request(request).await;
                self.body(response.map_err(|error| self.no_http(error))?)
                    .await
            };
            // The connection works as long as its answer is waited for. Where it ends
            // first, the answer has everything that came, or the reason why that is not
            // all, as soon as the connection is let go of.
            let mut answer = pin!(answer);
            tokio::select! {
                biased;
                bytes = &mut answer => (bytes?, Some(connection)),
                _ = &mut connection => {
                    drop(connection);
                    (answer.await?, None)
                }
            }
        };
        self.kept = connection.map(|connection| Kept {
            sender,
            connection,
            pages: pages + 1,
        });
        String::from_utf8(bytes.into()).map_err(|_| ScrapeError::NotText)
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ScrapeError> {
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
        match Limited::new(response.into_body(), PAGE_BYTES_MAX)
            .collect()
            .await
        {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                let bytes = PAGE_BYTES_MAX + 1;
                Err(PageError::TooLarge { bytes }.into())
            }
            Err(error) => Err(self.broken(std::io::Error::other(error))),
        }
    }

    fn broken(&self, source: std::io::Error) -> ScrapeError {
        ScrapeError::Broken {
            host: self.host.clone(),
            source,
        }
    }

    fn no_http(&self, source: hyper::Error) -> ScrapeError {
        ScrapeError::Http {
            host: self.host.clone(),
            source,
        }
    }
}
