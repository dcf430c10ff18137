//! What happens to an order with the id of another one and different content: `on_conflict`.

use serde::Serialize;

use crate::config::{Section, value_parser};

/// `consumers.<name>.on_conflict`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnConflict {
    /// It is dead-lettered with the code `id_conflict`.
    #[default]
    DeadLetter,
    /// It counts as a duplicate: its producer sends an order again when it changes.
    Ignore,
}

impl OnConflict {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let words = [("dead_letter", OnConflict::DeadLetter), ("ignore", OnConflict::Ignore)];
        section.optional_or("on_conflict", OnConflict::DeadLetter, &value_parser::one_of(&words))
    }
}
