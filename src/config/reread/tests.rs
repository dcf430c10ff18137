//! Files as editors, copies and orchestrators leave them. Time is paused: what others do between two looks is exact.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use super::super::DEFAULT_FILE;
use super::*;

const HANDLERS: [&str; 4] = ["order", "notification", "analytics", "failed"];

struct Scene {
    directory: tempfile::TempDir,
    sources: Sources,
    in_force: Config,
}

impl Scene {
    /// The default configuration is in force and in the file.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("orderd.toml");
        fs::write(&file, DEFAULT_FILE).unwrap();
        let sources = Sources { file: Some(file), ..Sources::default() };
        let in_force = Config::load(&sources, &HANDLERS).unwrap().config;
        Scene { directory, sources, in_force }
    }

    fn file(&self) -> PathBuf {
        self.sources.path()
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn reread(&self) -> Result<Loaded, RereadError> {
        reread(&self.sources, &HANDLERS, &self.in_force).await
    }

    /// The workers of consumer `order`, read while something is done to the file.
    async fn workers_during(&self, deed: impl Future<Output = ()>) -> usize {
        let (read, ()) = tokio::join!(self.reread(), deed);
        read.expect("a whole file in the end").config.consumers["order"].workers
    }
}

/// The default file with so many workers of the first consumer.
fn scaled(workers: usize) -> String {
    DEFAULT_FILE.replacen("\nworkers = 4\n", &format!("\nworkers = {workers}\n"), 1)
}

async fn millis(count: u64) {
    sleep(Duration::from_millis(count)).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_rests_is_read() {
    let scene = Scene::new();
    fs::write(scene.file(), scaled(64)).unwrap();
    assert_eq!(scene.workers_during(async {}).await, 64);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_written_piece_by_piece_is_read_when_it_is_whole() {
    let scene = Scene::new();
    let text = scaled(64);
    let pieces = text.as_bytes().chunks(text.len().div_ceil(20));
    let writing = async {
        let mut file = File::create(scene.file()).unwrap();
        for piece in pieces {
            file.write_all(piece).unwrap();
            millis(400).await;
        }
    };
    assert_eq!(scene.workers_during(writing).await, 64);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_swapped_is_read_anew() {
    let scene = Scene::new();
    let swapping = async {
        for workers in [10, 20, 30, 40] {
            fs::write(scene.beside("new"), scaled(workers)).unwrap();
            fs::rename(scene.beside("new"), scene.file()).unwrap();
            millis(450).await;
        }
    };
    assert_eq!(scene.workers_during(swapping).await, 40);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_swapped_is_followed() {
    let scene = Scene::new();
    fs::remove_file(scene.file()).unwrap();
    for version in [10, 20] {
        let directory = scene.beside(&format!("..{version}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("orderd.toml"), scaled(version)).unwrap();
    }
    symlink("..10", scene.beside("..data")).unwrap();
    symlink("..data/orderd.toml", scene.file()).unwrap();
    let swapping = async {
        millis(450).await;
        symlink("..20", scene.beside("..data_tmp")).unwrap();
        fs::rename(scene.beside("..data_tmp"), scene.beside("..data")).unwrap();
    };
    assert_eq!(scene.workers_during(swapping).await, 20);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_away_for_a_moment_is_awaited_and_one_that_stays_away_is_not() {
    let scene = Scene::new();
    let moving = async {
        fs::rename(scene.file(), scene.beside("orderd.toml~")).unwrap();
        millis(300).await;
        fs::write(scene.file(), scaled(64)).unwrap();
    };
    assert_eq!(scene.workers_during(moving).await, 64);
    fs::remove_file(scene.file()).unwrap();
    let error = scene.reread().await.unwrap_err();
    assert!(matches!(&error, RereadError::Load(LoadError::Unreadable { .. })), "{error:?}");
    assert!(error.problems()[0].contains("No such file"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_never_rests_is_refused_in_time() {
    let scene = Scene::new();
    let mut file = fs::OpenOptions::new().append(true).open(scene.file()).unwrap();
    let begun = Instant::now();
    let writing = async {
        loop {
            file.write_all(b"# more\n").unwrap();
            millis(300).await;
        }
    };
    // Cancel-safe: the test ends with the first.
    let read = tokio::select! { read = scene.reread() => read, () = writing => unreachable!("it goes on forever") };
    assert!(matches!(read, Err(RereadError::StillChanging { .. })), "{read:?}");
    assert!(begun.elapsed() < Duration::from_secs(11), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_looks_cut_off_is_refused() {
    let mut scene = Scene::new();
    scene.in_force.consumers.get_mut("order").unwrap().workers = 64;
    let begun = DEFAULT_FILE.find("[queues.order_queue]").unwrap();
    let number = DEFAULT_FILE.find("\nworkers = 4").unwrap() + "\nworkers = 4".len();
    for (content, expected) in [
        ("", "is empty"),
        (&DEFAULT_FILE[..number], "has no newline"),
        (DEFAULT_FILE.trim_end(), "has no newline"),
        ("\n", "neither [queues] nor [consumers]"),
        (&DEFAULT_FILE[..begun], "neither [queues] nor [consumers]"),
    ] {
        fs::write(scene.file(), content).unwrap();
        let problems = scene.reread().await.unwrap_err().problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
    }
}

/// Whoever wrote a file without queues and consumers goes on as before.
#[tokio::test(start_paused = true)]
async fn the_built_in_queues_and_consumers_stay_where_they_are_in_force() {
    let scene = Scene::new();
    fs::write(scene.file(), "[log]\nlevel = \"debug\"\n").unwrap();
    let loaded = scene.reread().await.unwrap();
    assert_eq!(loaded.config.log.level, super::super::LogLevel::Debug);
    assert_eq!(loaded.config.consumers, scene.in_force.consumers);
}

#[tokio::test(start_paused = true)]
async fn every_fault_of_a_whole_file_is_told() {
    let scene = Scene::new();
    fs::write(scene.file(), scaled(0).replacen("level = \"info\"", "level = \"loud\"", 1)).unwrap();
    let problems = scene.reread().await.unwrap_err().problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!(problems[0], "consumers.order.workers: must be at least 1, is 0");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_file_is_refused() {
    let scene = Scene::new();
    fs::remove_file(scene.file()).unwrap();
    fs::create_dir(scene.file()).unwrap();
    let problems = scene.reread().await.unwrap_err().problems();
    assert!(problems[0].contains("it is no regular file"), "{problems:?}");
}
