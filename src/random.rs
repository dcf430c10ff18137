//! Random secrets. What only has to differ, such as a name or a pause, is left to `fastrand`.

use std::fs::File;
use std::io::{self, Read};

/// Random bytes from the operating system, as hexadecimal digits. 16 are enough for a secret.
///
/// # Errors
/// The operating system's error.
pub fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_is_another_one() {
        let secrets = [random_hex(16).unwrap(), random_hex(16).unwrap()];
        assert!(secrets[0] != secrets[1] && secrets.iter().all(|secret| secret.len() == 32), "{secrets:?}");
        assert!(secrets[0].bytes().all(|digit| digit.is_ascii_hexdigit()));
    }
}
