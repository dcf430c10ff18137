//! `make install` and `make uninstall`, the man page and the shell completions.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_orderd");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const UNIT: &str = "usr/lib/systemd/system/orderd.service";
const DROP_IN: &str = "usr/lib/systemd/system/orderd.service.d/reload-before-253.conf";
const CONFIG: &str = "etc/orderd/orderd.toml";

/// Runs a make target with `DESTDIR=<destination>`, and returns its output.
fn make(target: &str, destination: &Path, systemd: &str) -> String {
    let variables = [
        format!("DESTDIR={}", destination.display()),
        "PREFIX=/usr".to_owned(),
        format!("BINARY={PROGRAM}"),
        format!("SYSTEMD={systemd}"),
    ];
    let output =
        Command::new("make").arg("--no-print-directory").arg(target).args(variables).current_dir(ROOT).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(directory).unwrap().to_owned());
            }
        }
    }
    found
}

fn orderd(arguments: &[&str]) -> String {
    let output = crate::orderd().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn everything_is_installed_and_uninstalled() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    make("install", directory.path(), "252");
    let everything = [
        CONFIG,
        "usr/bin/orderd",
        UNIT,
        DROP_IN,
        "usr/share/bash-completion/completions/orderd",
        "usr/share/fish/vendor_completions.d/orderd.fish",
        "usr/share/man/man8/orderd.8",
        "usr/share/zsh/site-functions/_orderd",
    ];
    let everything = everything.iter().map(PathBuf::from).collect();
    assert_eq!(files(directory.path()), everything);
    for file in &everything {
        let metadata = fs::metadata(directory.path().join(file)).unwrap();
        assert!(metadata.len() > 0, "{} is empty", file.display());
        let mode = if file.ends_with("bin/orderd") { 0o755 } else { 0o644 };
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{}", file.display());
    }
    let unit = fs::read_to_string(directory.path().join(UNIT)).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/orderd run\n") && !unit.contains("/usr/local"), "{unit}");
    make("uninstall", directory.path(), "252");
    assert_eq!(files(directory.path()), BTreeSet::from([PathBuf::from(CONFIG)]), "the configuration stays");
}

#[test]
fn installing_again_changes_nothing_and_keeps_an_edited_configuration() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    make("install", directory.path(), "252");
    let (before, unit) = (files(directory.path()), read(UNIT));
    make("install", directory.path(), "252");
    assert_eq!((files(directory.path()), read(UNIT)), (before, unit));

    fs::write(directory.path().join(CONFIG), "# mine\n").unwrap();
    let output = make("install", directory.path(), "257");
    assert!(output.contains("not overwritten"), "{output}");
    assert_eq!(read(CONFIG), "# mine\n");
    let default = fs::read_to_string(Path::new(ROOT).join("config/orderd.toml")).unwrap();
    assert_eq!(read("etc/orderd/orderd.toml.new"), default);
    assert!(!directory.path().join(DROP_IN).exists(), "with the drop-in, a newer systemd would reload twice");
}

/// Every subcommand and long option in the output of `--help`.
fn commands_and_options() -> BTreeSet<String> {
    let top = orderd(&["--help"]);
    let commands = top.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // Command names are indented by two spaces, continuation lines by more.
    let names = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let commands: Vec<&str> = names.filter(|name| !name.is_empty() && *name != "help").collect();
    assert!(commands.contains(&"run") && commands.contains(&"trace"), "{commands:?}");
    let mut words: BTreeSet<String> = commands.iter().map(|name| (*name).to_owned()).collect();
    for command in commands {
        let help = orderd(&[command, "--help"]);
        let options = help.lines().filter(|line| line.trim_start().starts_with('-'));
        let long = options.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
        let name = |word: &str| word.chars().skip(2).take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        words.extend(long.map(name));
    }
    words
}

#[test]
fn man_page_and_completions_cover_every_command_and_option() {
    let man = orderd(&["man"]).replace("\\-", "-").replace("\\fR", "").replace("\\fB", "").replace("\\fI", "");
    let pages = ["bash", "zsh", "fish"].map(|shell| (shell, orderd(&["completions", shell])));
    let words = commands_and_options();
    assert!(words.contains("since") && words.contains("config"), "{words:?}");
    for word in words {
        assert!(man.contains(&word), "the man page lacks {word}");
        for (shell, completions) in &pages {
            assert!(completions.contains(&word), "{shell} does not complete {word}");
        }
    }
    for section in ["NAME", "SYNOPSIS", "OPTIONS", "COMMANDS", "SIGNALS", "ENVIRONMENT", "FILES"] {
        assert!(man.contains(&format!(".SH {section}\n")), "no section {section}");
    }
}

#[test]
fn the_completions_are_valid_bash() {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script = directory.path().join("orderd");
    fs::write(&script, orderd(&["completions", "bash"])).unwrap();
    // Calls the completion function as bash does for `orderd stat<TAB>`.
    let complete =
        "source $0; COMP_WORDS=(orderd stat); COMP_CWORD=1; _orderd orderd stat orderd; echo ${COMPREPLY[@]}";
    let output = Command::new("bash").args(["--norc", "-c", complete]).arg(&script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "status", "{output:?}");
}

/// Runs `systemd-analyze security` where systemd is installed: the exposure is low enough, and the unit has no unknown keys
/// except those that are too new for this systemd.
#[test]
fn systemd_rates_the_unit_as_well_confined() {
    let unit = Path::new(ROOT).join("config/systemd/orderd.service");
    let analysis = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=15"])
        .arg(&unit)
        .output();
    let Ok(output) = analysis else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the exposure is above 1.5:\n{text}");
    assert!(text.contains("Overall exposure level for orderd.service: "), "{text}");
    let ignored = text.lines().filter(|line| line.contains("ignoring"));
    let newer = ["notify-reload", "RestartSteps", "RestartMaxDelaySec"];
    let unknown: Vec<_> = ignored.filter(|line| !newer.iter().any(|name| line.contains(name))).collect();
    assert_eq!(unknown, [""; 0]);
}
