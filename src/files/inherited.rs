//! Files that were open when this process was started.

/// The first file descriptor after standard input, output and error.
const FIRST: i32 = 3;

/// Keeps the files that whoever started this process has left open from its own children, such as a lock file of a shell script: a
/// child that outlives it would keep the lock. What is opened later is closed in children anyway.
pub fn close_inherited_in_children() {
    close_fds::set_fds_cloexec(FIRST, &[]);
}
