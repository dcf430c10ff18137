//! Checks that the stored dead letters and their replays add up to the message, once no replay runs and nothing is under way. It only reads.

use rusqlite::Connection;

/// States of a replayed message that has its outcome.
const WITH_OUTCOME: &str = "('processed', 'not_delivered', 'cancelled', 'undone', 'failed_again')";

/// What must not exist, and a query that counts it.
fn rules() -> [(&'static str, String); 9] {
    [
        (
            "replays have not ended",
            "SELECT count(*) FROM replays WHERE state NOT IN ('finished', 'stopped')".to_owned(),
        ),
        (
            "replayed messages are still under way",
            "SELECT count(*) FROM replay_letters WHERE state IN ('selected', 'publishing', 'published', 'retrying')"
                .to_owned(),
        ),
        ("replayed messages have no outcome", "SELECT count(*) FROM replay_letters WHERE state = 'unknown'".to_owned()),
        (
            "dead letters are in a replay that has ended",
            "SELECT count(*) FROM stored_dead_letters WHERE state = 'replaying'".to_owned(),
        ),
        (
            "replayed dead letters do not have exactly one outcome",
            format!(
                "SELECT count(*) FROM stored_dead_letters AS letters WHERE state = 'replayed' AND 1 <>
                 (SELECT count(*) FROM replay_letters WHERE letter_id = letters.id AND state IN {WITH_OUTCOME})"
            ),
        ),
        (
            "dead letters have an outcome, and are not replayed",
            format!(
                "SELECT count(*) FROM stored_dead_letters AS letters WHERE state IN ('open', 'held') AND EXISTS
                 (SELECT 1 FROM replay_letters WHERE letter_id = letters.id AND state IN {WITH_OUTCOME})"
            ),
        ),
        (
            "replayed messages have come back as several dead letters, or several as one",
            "SELECT count(*) - count(DISTINCT came_back_as) FROM replay_letters WHERE came_back_as IS NOT NULL"
                .to_owned(),
        ),
        (
            "replayed messages have failed again, and are no dead letter",
            "SELECT count(*) FROM replay_letters WHERE state = 'failed_again' AND came_back_as IS NULL".to_owned(),
        ),
        (
            "processed orders have a dead letter that is open, with the same content",
            "SELECT count(*) FROM stored_dead_letters AS letters JOIN orders ON orders.id = letters.order_id
             WHERE letters.state IN ('open', 'held') AND orders.status = 'processed' AND letters.code <> 'id_conflict'"
                .to_owned(),
        ),
    ]
}

/// What does not add up.
pub fn problems(ledger: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut problems = Vec::new();
    for (what, sql) in rules() {
        match ledger.query_row(&sql, [], |row| row.get::<_, i64>(0))? {
            0 => {}
            found => problems.push(format!("{found} {what}")),
        }
    }
    Ok(problems)
}
