//! Files that orderd writes besides the ledger's database: their permissions, and files of lines that are written whole. And
//! small files that it reads.
//!
//! ```text
//! read       small files, with a limit
//! mode       permissions of files and directories, whatever the umask
//! file_lock  a lock on a file that instances share
//! last_line  an incomplete last line is removed or terminated
//! line_file  appends whole lines to a file that other instances may share and other programs may move or delete
//! rolling    a line file per minute, hour or day; removes old ones
//! rewrite    removes or replaces lines of a file that running daemons append to
//! outage     why a file cannot be written
//! disk_room  whether a directory has room for more
//! inherited  files that were open when this process was started
//! file_system  file systems that are not local, or in memory
//! ```
//! It never decides what is written.

mod disk_room;
mod file_lock;
mod file_system;
mod inherited;
mod last_line;
mod line_file;
mod mode;
mod outage;
mod read;
mod rewrite;
mod rolling;

pub use disk_room::{DiskSpace, disk_space, has_no_room, is_disk_full};
pub use file_system::{remote_file_system, volatile_file_system};
pub use inherited::close_inherited_in_children;
pub use last_line::IncompleteLine;
pub use line_file::LineFile;
pub use mode::{
    FILE_MODE, SECRET_MODE, create_directory, create_new_file, directory_mode, limit_umask, remove_others_access,
    set_file_mode, sync_directory,
};
pub use outage::{FileOutage, FileOutageCause, FileState};
pub use read::read_limited;
pub use rewrite::{LineEdit, Rewritten, rewrite_lines};
pub use rolling::{Rolling, RollingFile, Rotation};
