//! Reads what a daemon's ledger has recorded: one JSON document, or many in lines, which are handed on one by one.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use url::Url;

use super::{AdminClient, AdminClientError, READ_DEADLINE};
use crate::chain::chain;

/// The largest document, in bytes: a dead letter of 64 MiB, each byte of which is escaped.
const MAX_DOCUMENT_BYTES: usize = 512 << 20;
/// How long to wait for the next part of an answer.
const PART_DEADLINE: Duration = Duration::from_secs(60);

/// The parts of a path below `/api/v1`, which need no escaping.
pub(in crate::cli) type Path<'a> = &'a [&'a str];
/// The parameters of a request.
pub(in crate::cli) type Query = Vec<(&'static str, String)>;

impl AdminClient {
    /// Gets a document. `None`: the daemon has none under this path.
    pub(in crate::cli) async fn read<T: DeserializeOwned>(
        &self,
        path: Path<'_>,
        query: &Query,
    ) -> Result<Option<T>, AdminClientError> {
        self.read_within(path, query, READ_DEADLINE).await
    }

    /// The same, if the answer begins within another time. A large one takes as long as it takes, while more of it arrives.
    pub(in crate::cli) async fn read_within<T: DeserializeOwned>(
        &self,
        path: Path<'_>,
        query: &Query,
        within: Duration,
    ) -> Result<Option<T>, AdminClientError> {
        let late = |_| AdminClientError::NoAnswer { address: self.address };
        let mut response = timeout(within, self.send(self.http.get(self.url(path, query)))).await.map_err(late)??;
        let (code, mut body) = (response.status(), Vec::new());
        let mut part = async || timeout(PART_DEADLINE, response.chunk()).await.map_err(late);
        while let Some(chunk) = part().await?.map_err(|error| self.unreachable(error))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_DOCUMENT_BYTES {
                return Err(self.not_orderd(format!("more than {MAX_DOCUMENT_BYTES} bytes")));
            }
        }
        if code == StatusCode::OK {
            return serde_json::from_slice(&body).map(Some).map_err(|error| self.not_orderd(error.to_string()));
        }
        let error = self.refused(code, &body);
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_unknown = json["error"].as_str().is_some_and(|error| error.starts_with("unknown_"));
        if code == StatusCode::NOT_FOUND && is_unknown { Ok(None) } else { Err(error) }
    }

    /// Gets documents, one per line.
    pub(in crate::cli) async fn read_lines(
        &self,
        path: Path<'_>,
        query: &Query,
    ) -> Result<DocumentLines, AdminClientError> {
        let late = |_| AdminClientError::NoAnswer { address: self.address };
        let request = self.send(self.http.get(self.url(path, query)));
        let mut response = timeout(READ_DEADLINE, request).await.map_err(late)??;
        let code = response.status();
        if code == StatusCode::OK {
            let address = self.address.to_string();
            return Ok(DocumentLines { response, address, received: Vec::new(), searched: 0 });
        }
        let body = timeout(READ_DEADLINE, response.chunk()).await;
        let body = body.ok().and_then(Result::ok).flatten().unwrap_or_default();
        Err(self.refused(code, &body))
    }

    fn url(&self, path: Path<'_>, query: &Query) -> Url {
        let base = format!("http://{}/api/v1", self.address);
        let mut url: Url = base.parse().expect("an address and a path are a URL");
        url.path_segments_mut().expect("it is no mailto: or data: URL").extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Why there is no document.
    fn refused(&self, code: StatusCode, body: &[u8]) -> AdminClientError {
        if let Err(rejected) = self.check_accepted(code, body) {
            return rejected;
        }
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        match (code, json["message"].as_str()) {
            (StatusCode::BAD_REQUEST, Some(message)) => {
                AdminClientError::Refused { message: message.to_owned(), is_usage: true }
            }
            _ => self.busy(code, body),
        }
    }
}

/// Documents that are being received, one per line. It holds one line, and what has arrived behind it.
pub(in crate::cli) struct DocumentLines {
    response: Response,
    address: String,
    received: Vec<u8>,
    /// How much of that has no line break.
    searched: usize,
}

impl DocumentLines {
    /// The next document; `None` after the last one.
    ///
    /// # Errors
    /// The answer has ended before its end: there may be more documents.
    pub(in crate::cli) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, AdminClientError> {
        loop {
            if let Some(end) = self.received[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let document = serde_json::from_slice(&self.received[..end]);
                self.received.drain(..=end);
                self.searched = 0;
                return document.map(Some).map_err(|error| self.cut_off(error.to_string()));
            }
            self.searched = self.received.len();
            if self.searched > MAX_DOCUMENT_BYTES {
                return Err(self.cut_off(format!("a line has more than {MAX_DOCUMENT_BYTES} bytes")));
            }
            match timeout(PART_DEADLINE, self.response.chunk()).await {
                Ok(Ok(Some(part))) => self.received.extend_from_slice(&part),
                Ok(Ok(None)) if self.received.is_empty() => return Ok(None),
                Ok(Ok(None)) => return Err(self.cut_off("its last line is not complete".to_owned())),
                Ok(Err(error)) => return Err(self.cut_off(chain(&error.without_url()))),
                Err(_) => return Err(self.cut_off(format!("nothing has arrived for {PART_DEADLINE:?}"))),
            }
        }
    }

    fn cut_off(&self, problem: String) -> AdminClientError {
        AdminClientError::CutOff { address: self.address.clone(), problem }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::cli::admin_client::test_server::{Answer, serve};

    /// A client for a server that answers every request with these bytes and closes the connection.
    async fn client(answer: &'static str) -> AdminClient {
        AdminClient::new(serve(vec![Answer::Raw(answer)]).await, None, None).unwrap()
    }

    /// The documents of an answer, until the end or the error.
    async fn documents(answer: &'static str) -> (Vec<i64>, Option<AdminClientError>) {
        let mut documents = Vec::new();
        let mut lines = client(answer).await.read_lines(&["dead-letters", "export"], &Query::new()).await.unwrap();
        loop {
            match lines.next().await {
                Ok(Some(document)) => documents.push(document),
                Ok(None) => return (documents, None),
                Err(error) => return (documents, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn an_answer_in_lines_that_ends_early_is_an_error_wherever_it_ends() {
        let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n1\n2\n3\r\n1\r\n\n\r\n0\r\n\r\n";
        let (read, error) = documents(whole).await;
        assert!(read == [1, 2, 3] && error.is_none(), "{read:?} {error:?}");
        for cut in [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1\n2\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n1\n2\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n1\n2\n3\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n1\n2\n",
        ] {
            let (read, error) = documents(cut).await;
            assert!(
                read == [1, 2] && matches!(error, Some(AdminClientError::CutOff { .. })),
                "{cut}: {read:?} {error:?}"
            );
            assert_eq!(error.unwrap().exit(), crate::cli::Exit::Unavailable);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_export_does_not_wait_for_ever_for_a_daemon_that_does_not_answer() {
        let client = AdminClient::new(serve(vec![Answer::Silence]).await, None, None).unwrap();
        let begun = Instant::now();
        let query = Query::new();
        let read = timeout(10 * READ_DEADLINE, client.read_lines(&["dead-letters", "export"], &query))
            .await
            .expect("it has a deadline");
        assert!(matches!(read, Err(AdminClientError::NoAnswer { .. })));
        assert_eq!(begun.elapsed().as_secs(), READ_DEADLINE.as_secs());
    }

    #[tokio::test]
    async fn only_an_answer_of_orderd_that_there_is_nothing_means_that_there_is_nothing() {
        let read = async |answer| client(answer).await.read::<i64>(&["dead-letters", "7"], &Query::new()).await;
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7").await.unwrap(), Some(7));
        let unknown =
            "HTTP/1.1 404 Not Found\r\nContent-Length: 43\r\n\r\n{\"error\":\"unknown_dead_letter\",\"message\":1}";
        assert_eq!(read(unknown).await.unwrap(), None);
        let other = read("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        assert!(matches!(other, Err(AdminClientError::NotOrderd { .. })), "{other:?}");
    }

    #[tokio::test]
    async fn an_id_is_one_part_of_a_path_whatever_it_contains() {
        let client = AdminClient::new("127.0.0.1:9".parse().unwrap(), None, None).unwrap();
        let url = client.url(&["orders", "a/b?c#d%"], &vec![("text", "x&y=ü".to_owned())]);
        assert_eq!(url.as_str(), "http://127.0.0.1:9/api/v1/orders/a%2Fb%3Fc%23d%25?text=x%26y%3D%C3%BC");
    }
}
