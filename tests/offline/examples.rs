//! The shop of `examples/`: its configuration is valid, and its programs are short enough to be copied.

use std::fs;
use std::path::Path;

/// Programs have fewer lines.
const LINES: usize = 60;

#[test]
fn the_configuration_of_the_example_shop_is_valid_and_undoes_every_step() {
    let mut check = crate::orderd();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shop.toml");
    let output = check.args(["check", "--config", file]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let config: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    let steps = config["consumers"]["order"]["steps"].as_array().unwrap();
    let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["charge", "reserve", "ship"]);
    assert!(steps.iter().all(|step| step.get("undo").is_some()));
}

#[test]
fn the_example_programs_in_other_languages_are_short() {
    let (mut found, mut too_long) = (0, Vec::new());
    for folder in ["python", "node", "shell", "java/src/main/java", "php"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(folder);
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_none_or(|extension| !["py", "js", "sh", "java", "php"].iter().any(|it| extension == *it))
            {
                continue;
            }
            found += 1;
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            if lines >= LINES {
                too_long.push(format!("{}: {lines} lines", path.display()));
            }
        }
    }
    assert_eq!(found, 8);
    assert!(too_long.is_empty(), "{too_long:#?}");
}
