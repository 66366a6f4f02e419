//! Users and passwords towards Kafka and Cassandra.

use std::{io, path::PathBuf};

/// Who lamina is to a backend. The password stands in no configuration: it comes from a file or from the environment.
#[derive(Clone, Debug)]
pub struct Login {
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// The variable that holds the password if no file is named.
    pub environment: &'static str,
}

impl Login {
    /// User and password; `None` if no user is named.
    ///
    /// # Errors
    /// If the file cannot be read, or a user is named without a password.
    pub fn read(&self) -> io::Result<Option<(String, String)>> {
        let Some(username) = &self.username else { return Ok(None) };
        let password = match &self.password_file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| io::Error::new(error.kind(), format!("password file {}: {error}", path.display())))?,
            None => std::env::var(self.environment).map_err(|_| {
                let name = self.environment;
                io::Error::other(format!("user {username:?} has no password: name a password_file, or set {name}"))
            })?,
        };
        Ok(Some((username.clone(), password.trim_end().to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_from_a_file_and_is_in_no_message() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let login = |username: Option<&str>, password_file: Option<PathBuf>| Login {
            username: username.map(str::to_owned),
            password_file,
            environment: "LAMINA_NO_SUCH_PASSWORD",
        };
        let read = login(Some("lamina"), Some(file.clone())).read().unwrap();
        assert_eq!(read, Some(("lamina".to_owned(), "hunter2".to_owned())));
        assert_eq!(login(None, Some(file)).read().unwrap(), None);
        let error = login(Some("lamina"), None).read().unwrap_err().to_string();
        assert!(error.contains("password_file") && error.contains("LAMINA_NO_SUCH_PASSWORD"), "{error}");
        let error = login(Some("lamina"), Some(folder.path().join("none"))).read().unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }
}
