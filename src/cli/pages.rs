//! The man page and the shells' completions, made from the one table that parses the arguments and prints the help.
//!
//! Nothing about commands or options is written here, so nothing can differ from what the program does.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// What the parser does not know.
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "SIGNALS",
        &[
            ("TERM, INT", "Drain: no new orders, those in hand are finished. A second one gives back what is in hand."),
            ("HUP", "Reload the configuration."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            ("ORDERD_CONFIG", "The configuration file, unless --config names one."),
            ("ORDERD_<SECTION>__<KEY>", "Overrides one setting, as in ORDERD_CONSUMERS__ORDER__WORKERS=8."),
            ("NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID", "Set by systemd: see sd_notify(3)."),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/orderd/orderd.toml", "The configuration, annotated key by key."),
            ("/var/lib/orderd/orderd.db", "The ledger: an SQLite file that other programs may read."),
        ],
    ),
    ("SEE ALSO", &[("systemctl(1), journalctl(1), rabbitmqctl(8)", "")]),
];

/// What a shell needs to complete orderd's commands and options.
pub(super) fn completions(shell: Shell, mut command: Command) -> Vec<u8> {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

/// The man page of section 8, as roff.
///
/// # Errors
/// None that writing to memory could have.
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
    if let Some(codes) = command.get_after_help() {
        let mut section = Roff::new();
        section.control("SH", ["EXIT STATUS AND SETTINGS"]);
        for paragraph in codes.to_string().lines() {
            section.control("PP", []).text([roman(paragraph)]);
        }
        section.to_writer(&mut page)?;
    }
    for (title, entries) in SECTIONS {
        let mut section = Roff::new();
        section.control("SH", [title]);
        for (term, text) in entries {
            section.control("TP", []).text([bold(*term)]).text([roman(*text)]);
        }
        section.to_writer(&mut page)?;
    }
    Ok(page)
}

/// One part for each subcommand, with the options that are its own.
fn subcommands(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help") {
        let own = subcommand.clone().mut_args(|option| {
            let everywhere = option.is_global_set() || option.get_id() == "help" || option.get_id() == "version";
            option.hide(everywhere)
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

/// A section's text as part of another one.
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
