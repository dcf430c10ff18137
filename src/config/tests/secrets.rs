//! Secrets: where they are read from, and that they are never shown.

use std::path::Path;

use super::*;

#[test]
fn a_password_file_is_read_without_its_final_newline() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    let variable = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let read = |path: &std::path::Path| load(DEFAULT_FILE, &[("ORDERD_BROKER__PASSWORD_FILE", &variable(path))]);
    std::fs::write(&path, "hunter2 \n").unwrap();
    set_mode(&path, 0o600);
    let (config, warnings) = read(&path).unwrap();
    assert_eq!(config.broker.password.expose(), "hunter2 ");
    assert_eq!(config.management.password.expose(), "hunter2 ");
    assert_eq!(warnings, [""; 0]);
    assert!(!format!("{config:?}").contains("hunter2"));
    set_mode(&path, 0o644);
    let warnings = read(&path).unwrap().1;
    assert!(warnings[0].starts_with("broker.password_file: every user of this machine can read"), "{warnings:?}");
    std::fs::write(&path, "\n").unwrap();
    assert!(read(&path).unwrap_err()[0].contains("it is empty"));
    std::fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    assert!(read(&path).unwrap_err()[0].contains("it is longer than 1024 bytes"));
    assert!(read(std::path::Path::new("/dev/zero")).unwrap_err()[0].contains("it is not a regular file"));
    assert!(read(directory.path()).unwrap_err()[0].contains("it is a directory"));
    std::fs::remove_file(&path).unwrap();
    let problem = &read(&path).unwrap_err()[0];
    assert!(problem.contains("No such file") && problem.contains(&variable(&path)), "{problem}");
}

#[test]
fn a_password_and_a_password_file_in_one_layer_conflict() {
    let file = default_with("#password_file = \"/run/credentials/orderd.service/broker\"", "password_file = \"/x\"");
    assert_eq!(problems(&file), ["broker.password_file: conflicts with password: set only one of them"]);
    let (config, _) = load(&file, &[("ORDERD_BROKER__PASSWORD", "mine")]).unwrap();
    assert_eq!(config.broker.password.expose(), "mine");
}

#[test]
fn a_path_may_name_one_of_systemds_credentials() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker");
    std::fs::write(&path, "hunter2\n").unwrap();
    set_mode(&path, 0o400);
    let file = default_with("password = \"guest\"", "password_file = \"$CREDENTIALS_DIRECTORY/broker\"");
    let with = |environment: &[(OsString, OsString)], file: &str| {
        parse(
            file.as_bytes(),
            &handlers::sources(),
            &ReadContext::new(environment, Path::new("/etc/orderd/orderd.toml"), false),
        )
    };
    let set = [(OsString::from("CREDENTIALS_DIRECTORY"), directory.path().as_os_str().to_owned())];
    let (config, warnings, _) = with(&set, &file).expect("a valid configuration");
    assert_eq!((config.broker.password.expose(), warnings.len()), ("hunter2", 0));
    let problem =
        |result: Result<_, ConfigErrors>| result.expect_err("an invalid configuration").problems[0].to_string();
    let unset = problem(with(&[], &file));
    assert!(unset.starts_with("broker.password_file: ") && unset.contains("is not set"), "{unset}");
    let other = problem(with(&set, &file.replace("$CREDENTIALS_DIRECTORY", "$HOME")));
    assert!(other.contains("must be a path or begin with \"$CREDENTIALS_DIRECTORY/\""), "{other}");
}

#[test]
fn a_password_is_rejected_on_the_command_line_and_causes_a_warning_where_others_can_read_it() {
    for key in ["broker.password", "management.password"] {
        let found = load_with("", &[], &[&format!("{key}=hunter2")]).unwrap_err();
        assert!(found[0].starts_with(&format!("{key}: must not be on the command line")), "{found:?}");
        assert!(!found.concat().contains("hunter2"), "{found:?}");
    }
    let (_, warnings) = load("", &[("ORDERD_BROKER__PASSWORD", "hunter2")]).expect("a valid configuration");
    assert!(warnings.len() == 1 && warnings[0].contains("can read its environment"), "{warnings:?}");
    let warnings = |file: &str, is_world_readable| {
        let context = ReadContext::new(&[], Path::new("/etc/orderd/orderd.toml"), is_world_readable);
        let (_, warnings, _) = parse(file.as_bytes(), &handlers::sources(), &context).expect("a valid configuration");
        warnings.iter().map(Problem::to_string).collect::<Vec<_>>()
    };
    assert_eq!(warnings(DEFAULT_FILE, true), [""; 0], "the default password is not a secret");
    let file = default_with("password = \"guest\"", "password = \"hunter2\"");
    assert_eq!(warnings(&file, false), [""; 0]);
    let exposed = warnings(&file, true);
    assert!(
        exposed[0].starts_with("broker.password: every user of this machine can read the configuration file"),
        "{exposed:?}"
    );
}

#[test]
fn no_secret_is_ever_shown() {
    let file = "[broker]\npassword = [\"hunter2\"]\npasword = \"hunter2\"\naddresses = [\"amqp://a:hunter2@b\"]\n\
                [management]\nurl = \"http://a:hunter2@b\"\n";
    let found = problems(file);
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(!found.concat().contains("hunter2"), "{found:?}");
    let found = load_with("", &[("ORDERD_BROKER__PASWORD", "hunter2")], &["hunter2"]).unwrap_err();
    assert!(found.len() == 2 && !found.concat().contains("hunter2"), "{found:?}");
    let sources = Sources {
        settings: vec!["broker.password=hunter2".to_owned()],
        environment: vec![("ORDERD_BROKER__PASSWORD".into(), "hunter2".into())],
        ..Sources::default()
    };
    let shown = format!("{sources:?}");
    assert!(shown.contains("ORDERD_BROKER__PASSWORD") && !shown.contains("hunter2"), "{shown}");
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
