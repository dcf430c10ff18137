//! The keys of `http`: where a step's service is and how orderd authenticates to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use reqwest::header::{HeaderName, HeaderValue};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use url::Url;

use crate::config::{Secret, Section, Value, client_files, token_in_file, value_parser};
use crate::tls::TlsFiles;

const MAX_URL_BYTES: usize = 2048;
const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 4096;
/// Headers that orderd or HTTP itself sets.
const RESERVED: [&str; 12] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "orderd-signature",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where a service is, and how orderd authenticates to it.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// The section that it was read from, for the log.
    pub section: Arc<str>,
    /// `http://` or `https://`, without a user name and without what is in `url_rest`.
    pub url: Url,
    /// The end of the URL, which may contain a secret: its query, or also its path.
    pub url_rest: Option<Secret>,
    /// Further headers of each request. Their values may be secret.
    pub headers: BTreeMap<String, Secret>,
    /// The token in `bearer_file`.
    pub bearer: Option<Secret>,
    /// The key in `hmac_key_file`, which signs each request.
    pub hmac_key: Option<Secret>,
    /// Used if the URL begins with `https://`. Read again when a handshake fails.
    pub tls: TlsFiles,
}

impl HttpSettings {
    /// Reads the section. `None` if something is wrong, which is reported.
    pub fn read(mut section: Section<'_>) -> Option<Self> {
        let mut url = section.required("url", ": say what to call", &url);
        let headers = section.named_values("headers", MAX_HEADERS, &header);
        let bearer = token_in_file(&mut section, "bearer_file");
        if bearer.is_some() && headers.keys().any(|name| name.eq_ignore_ascii_case("authorization")) {
            section.problem("bearer_file", "conflicts with the header \"authorization\": set only one of them");
        }
        let hmac_key = token_in_file(&mut section, "hmac_key_file");
        let is_tls = url.as_ref().is_some_and(|url| url.scheme() == "https");
        let tls = client_files(&mut section, is_tls);
        let path = section.path().into();
        section.finish();
        let url_rest = url.as_ref().and_then(Url::query).map(|query| Secret::new(["?", query].concat()));
        if let Some(url) = &mut url {
            url.set_query(None);
        }
        Some(HttpSettings { section: path, url: url?, url_rest, headers, bearer, hmac_key, tls })
    }

    /// The whole URL, which must not be shown.
    pub(super) fn called_url(&self) -> Url {
        let rest = self.url_rest.as_ref().map_or("", Secret::expose);
        let whole = [self.url.as_str(), rest].concat().parse();
        whole.expect("a URL that was read is still one with its end")
    }

    /// Hides the path of the URL, which is a secret.
    pub fn with_secret_path(mut self) -> Self {
        let whole = self.called_url();
        self.url.set_path("/");
        let rest = whole.as_str().strip_prefix(self.url.as_str());
        self.url_rest = rest.filter(|rest| !rest.is_empty()).map(Secret::new);
        self
    }
}

/// As in the file, the end of the URL apart. The secrets in files are compared by their content, so that a reload applies a changed one.
impl Serialize for HttpSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let HttpSettings { section: _, url, url_rest, headers, bearer, hmac_key, tls } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("url", url.as_str())?;
        if let Some(rest) = url_rest {
            map.serialize_entry("url_rest", rest)?;
        }
        if !headers.is_empty() {
            map.serialize_entry("headers", headers)?;
        }
        for (key, secret) in [("bearer_file", bearer), ("hmac_key_file", hmac_key)] {
            if let Some(secret) = secret {
                map.serialize_entry(key, secret)?;
            }
        }
        let client = tls.client.as_ref();
        let files: [(&str, Option<&Path>); 3] = [
            ("ca_file", tls.ca.as_deref()),
            ("certificate_file", client.map(|client| &*client.certificate)),
            ("key_file", client.map(|client| &*client.key)),
        ];
        for (key, file) in files {
            if let Some(file) = file {
                map.serialize_entry(key, &file.display().to_string())?;
            }
        }
        map.end()
    }
}

/// A URL with a user name is rejected without showing it: it may contain a password. So may the query of any other.
fn url(value: &Value) -> Result<Url, String> {
    let text = value_parser::text(MAX_URL_BYTES)(value)?;
    if text.contains('@') && Url::parse(&text).is_ok_and(|url| !url.username().is_empty() || url.password().is_some()) {
        return Err("must not contain a user name or a password: use headers or bearer_file".to_owned());
    }
    match Url::parse(&text) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() && url.fragment().is_none() => Ok(url),
        Ok(_) | Err(_) => {
            let shown =
                text.find(['?', '#']).map_or_else(|| value.to_string(), |end| format!("{:?} and more", &text[..end]));
            Err(format!("must be a URL such as \"http://127.0.0.1:8081/charge\", is {shown}"))
        }
    }
}

fn header(name: &str, value: &Value) -> Result<Secret, String> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err("is not the name of an HTTP header".to_owned());
    }
    if RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err("is set by orderd".to_owned());
    }
    let text = value_parser::secret(MAX_HEADER_BYTES)(value)?;
    HeaderValue::from_str(&text).map_err(|_| "must consist of visible ASCII characters and spaces".to_owned())?;
    Ok(Secret::new(text))
}
