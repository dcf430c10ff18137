//! Whether an order's customer can be notified: what is wrong with the channel, the address, the number and the language that an
//! order gives. For people who publish orders; it refuses none. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::address;
use super::settings::{ChannelKind, NotifySettings};
use super::templates::TemplateFiles;
use super::unknown_channel;
use super::webhook::WebhookBody;
use crate::domain::Order;

/// What is wrong, with what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientWarning {
    /// The order's field.
    pub field: &'static str,
    /// Stable; if the notification is dead-lettered or skipped, with this failure code.
    pub code: &'static str,
    /// For people. Contains no address and no number.
    pub message: String,
}

/// What the channels need of an order.
#[derive(Debug, Clone, Default)]
pub struct RecipientCheck {
    /// Empty if notifications go to the file.
    channels: BTreeMap<String, Need>,
    /// Of each channel with templates.
    templates: BTreeMap<String, TemplateFiles>,
    /// Channels of operators, which no order can choose.
    reserved: BTreeSet<String>,
    default_channel: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Email,
    Phone,
    Nothing,
}

impl RecipientCheck {
    /// For these channels of customers.
    pub fn new(settings: &NotifySettings, default_channel: &str) -> Self {
        let need = |kind: &ChannelKind| match kind {
            ChannelKind::Smtp(..) => Need::Email,
            ChannelKind::Webhook(_, WebhookBody::Sms, _) => Need::Phone,
            ChannelKind::Webhook(..) | ChannelKind::Log => Need::Nothing,
        };
        RecipientCheck {
            channels: settings.0.iter().map(|(name, channel)| (name.clone(), need(&channel.kind))).collect(),
            templates: settings
                .0
                .iter()
                .filter_map(|(name, channel)| Some((name.clone(), channel.texts()?.files.clone())))
                .collect(),
            reserved: settings.1.clone(),
            default_channel: default_channel.to_owned(),
        }
    }

    /// Everything that is wrong.
    pub fn warnings(&self, order: &Order) -> Vec<RecipientWarning> {
        let mut warnings = Vec::new();
        let mut warn = |field, code, message: String| warnings.push(RecipientWarning { field, code, message });
        if order.notify.is_some() && order.wanted_channel().is_none() {
            let message = format!(
                "is not the name of a channel, 1 to 32 letters, digits, \"_\" and \"-\": the default, {:?}, is used",
                self.default_channel
            );
            warn("notify", "invalid_notify", message);
        }
        if order.phone.is_some() && order.customer_phone().is_none() {
            warn("phone", "invalid_phone", "is no telephone number: it counts as none".to_owned());
        }
        if order.locale.is_some() && order.customer_locale().is_none() {
            warn(
                "locale",
                "invalid_locale",
                "is no language such as \"de\" or \"de-AT\": it counts as none".to_owned(),
            );
        }
        let channel = order.wanted_channel().unwrap_or(&self.default_channel);
        if let (Some(locale), Some(files)) = (order.customer_locale(), self.templates.get(channel))
            && !files.has_language(locale)
        {
            let message = format!("the channel {channel:?} has no templates in {locale:?}: its own language is used");
            warn("locale", "no_templates", message);
        }
        match self.channels.get(channel) {
            None if self.channels.is_empty() && !self.reserved.contains(channel) => {}
            None => {
                let reason = unknown_channel(channel, self.channels.keys());
                warn("notify", "unknown_channel", format!("{reason}: the notification is dead-lettered"));
            }
            Some(Need::Nothing) => {}
            Some(Need::Phone) if order.customer_phone().is_none() => {
                warn(
                    "phone",
                    "no_address",
                    format!("is missing, and the channel {channel:?} needs it: the customer is not notified"),
                );
            }
            Some(Need::Phone) => {}
            Some(Need::Email) => match order.email.as_deref().filter(|email| !email.is_empty()) {
                None => {
                    let message =
                        format!("is missing, and the channel {channel:?} needs it: the customer is not notified");
                    warn("email", "no_address", message);
                }
                Some(email) => {
                    if let Err(problem) = address::parse_customer(email) {
                        warn("email", "invalid_address", format!("{problem}: the notification is dead-lettered"));
                    }
                }
            },
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::OrderDocument;

    #[test]
    fn an_order_whose_customer_cannot_be_notified_is_named_before_it_is_published() {
        let channels = [("email", Need::Email), ("sms", Need::Phone), ("chat", Need::Nothing)];
        let check = RecipientCheck {
            channels: channels.map(|(name, need)| (name.to_owned(), need)).into(),
            templates: [("email".to_owned(), TemplateFiles::built_in())].into(),
            reserved: BTreeSet::from(["operators".to_owned()]),
            default_channel: "email".to_owned(),
        };
        let operators_only = RecipientCheck { channels: BTreeMap::new(), templates: BTreeMap::new(), ..check.clone() };
        let files = RecipientCheck { default_channel: "email".to_owned(), ..RecipientCheck::default() };
        for (fields, expected, without_channels) in [
            (r#""email": "ada@example.com", "locale": "de-AT""#, &[][..], &[][..]),
            (r#""email": "ada@example.com", "locale": "fr-CA""#, &["no_templates"], &[]),
            (r#""email": "ada@example.com", "locale": "german""#, &["invalid_locale"], &["invalid_locale"]),
            (r#""notify": "chat""#, &[], &[]),
            (r#""notify": "sms", "phone": "+49 30 1""#, &[], &[]),
            (r#""notify": "sms", "email": "ada@example.com""#, &["no_address"], &[]),
            (r#""notify": "sms", "phone": "call me""#, &["invalid_phone", "no_address"], &["invalid_phone"]),
            (r#""email": "ada""#, &["invalid_address"], &[]),
            (r#""email": "ada@localhost""#, &["invalid_address"], &[]),
            (r#""note": "none""#, &["no_address"], &[]),
            (r#""notify": "pigeon""#, &["unknown_channel"], &[]),
            (
                r#""notify": "a b", "locale": "../x", "email": "ada@example.com""#,
                &["invalid_notify", "invalid_locale"],
                &["invalid_notify", "invalid_locale"],
            ),
        ] {
            let json = format!(r#"{{"id": 1, "product": "Lamp", "quantity": 1, "price": 1, {fields}}}"#);
            let Ok(OrderDocument::Placed(order)) = OrderDocument::from_json(&json, None) else { panic!("{json}") };
            let codes = |check: &RecipientCheck| -> Vec<&str> {
                check.warnings(&order).into_iter().map(|warning| warning.code).collect()
            };
            assert_eq!(codes(&check), expected, "{fields}");
            assert_eq!(codes(&files), without_channels, "{fields}");
            assert_eq!(codes(&operators_only), without_channels, "{fields}");
        }
    }

    #[test]
    fn an_order_that_chooses_the_channel_of_the_operators_is_named_and_the_channel_is_never_suggested() {
        let json = r#"{"id": 1, "product": "Lamp", "quantity": 1, "price": 1, "notify": "operators"}"#;
        let Ok(OrderDocument::Placed(order)) = OrderDocument::from_json(json, None) else { panic!("{json}") };
        for channels in [BTreeMap::new(), BTreeMap::from([("email".to_owned(), Need::Email)])] {
            let reserved = BTreeSet::from(["operators".to_owned()]);
            let default_channel = "email".to_owned();
            let check = RecipientCheck { channels, reserved, default_channel, ..RecipientCheck::default() };
            let warnings = check.warnings(&order);
            assert_eq!(warnings[0].code, "unknown_channel");
            let suggested = ["only operators", ", operators"].map(|text| warnings[0].message.contains(text));
            assert_eq!(suggested, [false; 2], "{}", warnings[0].message);
        }
    }
}
