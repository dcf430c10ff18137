//! The checked settings as keys of the file, to be shown and compared. It reads nothing.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json};

use super::{ChannelKind, ChannelSettings, NotifySettings, WebhookBody};
use crate::config::duration;
use crate::tls::TlsFiles;

/// As in the file. Besides, each file of templates that is not built in has a key with its digest, so that a reload applies and shows a
/// changed one.
impl Serialize for NotifySettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, channel)| (name, channel.keys())))
    }
}

impl ChannelSettings {
    fn keys(&self) -> Map<String, Json> {
        let mut keys = Map::new();
        let mut set = |key: &str, value: Json| keys.insert(key.to_owned(), value);
        let texts = match &self.kind {
            ChannelKind::Log => {
                set("type", "log".into());
                return keys;
            }
            ChannelKind::Smtp(smtp, texts) => {
                set("type", "smtp".into());
                set("address", smtp.address.to_string().into());
                set("tls", smtp.tls.as_str().into());
                if let Some((username, password)) = &smtp.login {
                    set("username", username.as_str().into());
                    set("password_file", json(password));
                }
                set("from", smtp.sender.from.to_string().into());
                set("reply_to", smtp.sender.reply_to.as_ref().map(ToString::to_string).into());
                set("accept_timeout", duration::format(smtp.accept_timeout).into());
                set("list_unsubscribe", smtp.sender.list_unsubscribe.clone().into());
                for (key, file) in tls_files(&smtp.files) {
                    set(key, file.into());
                }
                texts
            }
            ChannelKind::Webhook(http, body, texts) => {
                set("type", "webhook".into());
                set("http", json(&**http));
                set("body", body.template().into());
                texts
            }
        };
        set("timeout", duration::format(self.timeout).into());
        set("max_connections", self.max_connections.into());
        set("fallback", self.fallback.clone().into());
        if matches!(self.kind, ChannelKind::Smtp(..) | ChannelKind::Webhook(_, WebhookBody::Sms, _)) {
            set("without_address", self.without_address.as_str().into());
        }
        set("circuit_breaker", json(&self.breaker));
        set("shop", texts.options.shop.as_str().into());
        set("language", texts.options.language.as_str().into());
        set("time_zone", texts.zone_name.clone().unwrap_or_else(|| "UTC".to_owned()).into());
        set("templates", texts.directory.as_ref().map(|directory| directory.display().to_string()).into());
        for (file, digest) in texts.files.changed() {
            set(&format!("templates[{file}]"), digest.into());
        }
        set("templates_faulty", texts.fault.as_ref().map(|_| true).into());
        keys.retain(|_, value| !value.is_null());
        keys
    }
}

fn json(value: &impl Serialize) -> Json {
    serde_json::to_value(value).expect("settings are structs of plain values")
}

fn tls_files(files: &TlsFiles) -> Vec<(&'static str, String)> {
    let client = files.client.as_ref();
    let files = [
        ("ca_file", files.ca.as_ref()),
        ("certificate_file", client.map(|client| &client.certificate)),
        ("key_file", client.map(|client| &client.key)),
    ];
    files.into_iter().filter_map(|(key, file)| Some((key, file?.display().to_string()))).collect()
}
