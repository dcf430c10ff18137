//! Files that were open when this process was started.

/// The first file descriptor after standard input, output and error.
const FIRST: i32 = 3;

/// Closes in all children the files that were open when this process was started, such as the lock file of a shell script: a child
/// that outlives the script would keep the lock. Files that are opened later are closed in children anyway.
pub fn close_inherited_in_children() {
    close_fds::set_fds_cloexec(FIRST, &[]);
}
