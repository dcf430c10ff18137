//! Times, and the table of them.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// One thing that was measured.
pub struct Row {
    /// `list`, `groups`, `export` or `plan`.
    kind: &'static str,
    /// `command` or `HTTP`.
    by: &'static str,
    name: String,
    /// Sorted.
    times: Vec<Duration>,
    /// The most of all runs, in bytes; 0: not measured.
    memory: u64,
    note: String,
}

impl Row {
    /// Measures what `run` does, which returns the memory that it took.
    pub fn measure(
        kind: &'static str,
        by: &'static str,
        name: &str,
        rounds: usize,
        mut run: impl FnMut() -> Result<u64, Box<dyn Error>>,
    ) -> Result<Row, Box<dyn Error>> {
        let (mut times, mut memory) = (Vec::with_capacity(rounds), 0);
        for _ in 0..rounds {
            let begun = Instant::now();
            memory = run()?.max(memory);
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        let row = Row { kind, by, name: name.to_owned(), times, memory, note: String::new() };
        eprintln!("{row}");
        Ok(row)
    }

    /// With a remark in the table.
    pub fn noted(self, note: String) -> Row {
        Row { note, ..self }
    }

    /// The time that this share of the runs did not exceed.
    fn percentile(&self, percent: usize) -> Duration {
        self.times[((self.times.len() * percent).div_ceil(100)).saturating_sub(1)]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { kind, by, name, memory, note, .. } = self;
        let [p50, p95, max] = [50, 95, 100].map(|percent| self.percentile(percent).as_secs_f64() * 1e3);
        let memory = if *memory > 0 { format!("{:>5} MiB", memory / MIB) } else { " ".repeat(9) };
        write!(f, "{kind:<7} {by:<8} {name:<30} {p50:>9.1} {p95:>9.1} {max:>9.1}  {memory} {note}")
    }
}

/// Everything that was measured.
pub struct Report {
    letters: u32,
    goal: Duration,
    rows: Vec<Row>,
    /// Of the daemon, in bytes.
    pub daemon_memory: u64,
}

impl Report {
    pub fn new(letters: u32, goal: Duration) -> Self {
        Report { letters, goal, rows: Vec::new(), daemon_memory: 0 }
    }

    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// What is beyond its limit.
    pub fn problems(&self, max_command_mib: u64, max_daemon_mib: u64) -> Vec<String> {
        let has_goal = |row: &&Row| matches!(row.kind, "list" | "groups");
        let slow = self.rows.iter().filter(has_goal).filter(|row| row.percentile(50) > self.goal);
        let slow = slow.map(|row| format!("slower than {:?}: {row}", self.goal));
        let large = self.rows.iter().filter(|row| row.memory > max_command_mib * MIB);
        let large = large.map(|row| format!("more than {max_command_mib} MiB: {row}"));
        let daemon = (self.daemon_memory > max_daemon_mib * MIB)
            .then(|| format!("the daemon took more than {max_daemon_mib} MiB: {} MiB", self.daemon_memory / MIB));
        slow.chain(large).chain(daemon).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} dead letters; milliseconds, and the memory of a command at its peak", self.letters)?;
        writeln!(f, "{:<7} {:<8} {:<30} {:>9} {:>9} {:>9}", "", "", "", "p50", "p95", "max")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        writeln!(f, "the daemon's memory at its peak: {} MiB", self.daemon_memory / MIB)
    }
}
