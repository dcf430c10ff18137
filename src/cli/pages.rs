//! The man page and the shell completions, generated from the definition that parses the arguments and prints the help.
//!
//! It describes no command or option itself, so it cannot contradict the program.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::exit::EXIT_CODES;

/// Sections of the man page that the argument parser does not know.
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "SIGNALS",
        &[
            (
                "TERM, INT",
                "Drain: take no new orders, finish those in flight. A second signal returns them to the broker, a third exits at once.",
            ),
            ("HUP", "Reload the configuration."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            ("ORDERD_CONFIG", "The configuration file, unless --config is given."),
            ("ORDERD_<SECTION>__<KEY>", "Overrides one setting, as in ORDERD_CONSUMERS__ORDER__WORKERS=8."),
            ("NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID", "Set by systemd; see sd_notify(3)."),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/orderd/orderd.toml", "The configuration; every key is explained there."),
            ("/var/lib/orderd/orderd.db", "The ledger: an SQLite database that other programs may read."),
        ],
    ),
    ("SEE ALSO", &[("systemctl(1), journalctl(1), rabbitmqctl(8)", "")]),
];

/// The script with which a shell completes commands and options.
pub(super) fn completions(shell: Shell, mut command: Command) -> Vec<u8> {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

/// The man page, section 8, as roff.
///
/// # Errors
/// Never in practice: it writes to memory.
pub(super) fn man(mut command: Command) -> io::Result<Vec<u8>> {
    command.build();
    let version = format!("orderd {}", command.get_version().unwrap_or_default());
    let man = Man::new(command.clone()).section("8").source(version).manual("System administration");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    Roff::new().control("SH", ["COMMANDS"]).to_writer(&mut page)?;
    subcommands(&command, &mut page)?;
    exit_status(&mut page)?;
    for (title, entries) in SECTIONS {
        definitions(title, entries, &mut page)?;
    }
    Ok(page)
}

fn exit_status(page: &mut Vec<u8>) -> io::Result<()> {
    let codes: Vec<(String, &str)> = EXIT_CODES.iter().map(|(code, meaning)| (code.to_string(), *meaning)).collect();
    let entries: Vec<(&str, &str)> = codes.iter().map(|(code, meaning)| (code.as_str(), *meaning)).collect();
    definitions("EXIT STATUS", &entries, page)
}

/// A section of terms with their explanations.
fn definitions(title: &str, entries: &[(&str, &str)], page: &mut Vec<u8>) -> io::Result<()> {
    let mut section = Roff::new();
    section.control("SH", [title]);
    for (term, text) in entries {
        section.control("TP", []).text([bold(*term)]).text([roman(*text)]);
    }
    section.to_writer(page)
}

/// A subsection for each subcommand, with its own options only.
fn subcommands(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help") {
        let own = subcommand.clone().mut_args(|option| {
            let is_global = option.is_global_set() || option.get_id() == "help" || option.get_id() == "version";
            option.hide(is_global)
        });
        let name = subcommand.get_bin_name().unwrap_or(subcommand.get_name()).to_owned();
        Roff::new().control("SS", [name.as_str()]).to_writer(page)?;
        let (nested, man) = (own.has_subcommands(), Man::new(own));
        without_title(page, |part| man.render_description_section(part))?;
        if nested {
            subcommands(subcommand, page)?;
        } else {
            Roff::new().control("PP", []).to_writer(page)?;
            without_title(page, |part| man.render_synopsis_section(part))?;
            without_title(page, |part| man.render_options_section(part))?;
        }
    }
    Ok(())
}

/// Renders a section without its title, to become part of another section.
fn without_title(page: &mut Vec<u8>, render: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
    let mut part = Vec::new();
    render(&mut part)?;
    let text = String::from_utf8(part).map_err(io::Error::other)?;
    let kept =
        text.lines().filter(|line| !line.starts_with(".SH") && !line.starts_with(".ie") && !line.starts_with(".el"));
    for line in kept {
        page.extend_from_slice(line.as_bytes());
        page.push(b'\n');
    }
    Ok(())
}
