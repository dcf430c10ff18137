//! The exit codes of all commands.

use std::process::ExitCode;

/// How a command ended. The exit codes follow `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: success.
    Done,
    /// 1: some input was refused, the order is unknown, a replayed dead letter failed again, or a reload left something unapplied.
    Refused,
    /// 3: there was nothing to do: no dead letter was selected that the action can be applied to.
    Nothing,
    /// 64: wrong arguments, or an unknown consumer.
    Usage,
    /// 69: broker or daemon unreachable, or a reload rejected for a temporary reason.
    Unavailable,
    /// 70: a bug, an error of the operating system, or a daemon that did not stop in time.
    Internal,
    /// 77: the daemon does not accept the token, or the user may only read.
    Denied,
    /// 78: the configuration is invalid, or the broker contradicts it.
    Config,
    /// 130: interrupted (Ctrl-C). A replay that has begun continues in the daemon.
    Interrupted,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::Nothing => 3,
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Internal => 70,
            Exit::Denied => 77,
            Exit::Config => 78,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(u8::from(exit))
    }
}

/// Every exit code and its meaning, for the help and the man page.
pub(super) const EXIT_CODES: [(u8, &str); 9] = [
    (0, "success"),
    (
        1,
        "some input was refused, the order is unknown, a replayed dead letter failed again, or a reload left something unapplied",
    ),
    (3, "nothing to do: no dead letter was selected that the action can be applied to"),
    (64, "usage error, or unknown consumer"),
    (69, "broker or daemon unreachable, or reload rejected for a temporary reason"),
    (70, "internal error, or a daemon that did not stop in time"),
    (77, "the daemon does not accept the token, or the user may only read"),
    (78, "configuration error, or reload rejected"),
    (130, "interrupted (Ctrl-C) while it dealt with dead letters; a replay that has begun continues"),
];

/// What the help says after the options.
pub(super) fn after_help() -> String {
    let codes: String = EXIT_CODES.iter().map(|(code, meaning)| format!("  {code:>3}  {meaning}\n")).collect();
    format!(
        "Exit codes:\n{codes}\n--set overrides ORDERD_<SECTION>__<KEY> in the environment, which overrides the file, which \
         overrides the defaults."
    )
}
