//! Blocking HTTP requests, so that tests read top to bottom.

use std::fmt;

use reqwest::{Client, RequestBuilder, header::HeaderMap};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::certificates::Authority;

/// A client that trusts the run's authority. Loopback only: it knows no proxy.
pub(crate) struct Http {
    runtime: Runtime,
    pub(crate) client: Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Http {
    pub(crate) fn new(authority: &Authority) -> Self {
        let client = Client::builder()
            .tls_backend_preconfigured((*authority.client()).clone())
            .no_proxy()
            .build()
            .unwrap();
        // One worker thread drives the client's connections between requests.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self { runtime, client }
    }

    /// Waits for what somebody else does over this client.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Sends the request; an error means that there was no whole answer.
    pub(crate) fn send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        self.runtime.block_on(async {
            let response = request.send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok(Answer {
                status,
                headers,
                body: response.text().await?,
            })
        })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

impl Answer {
    /// The answer's JSON, if its status is one of success.
    #[track_caller]
    pub(crate) fn success(&self) -> Value {
        assert!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            self.body
        );
        serde_json::from_str(&self.body).unwrap()
    }

    /// The warnings that the API server passed on (RFC 9111: `299 - "text"`).
    pub(crate) fn warnings(&self) -> Vec<&str> {
        self.headers
            .get_all("warning")
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect()
    }
}
