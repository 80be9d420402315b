//! The two files of a data directory: the key and the list that goes with it, one of no use without the other.

use std::fs::File;
use std::path::Path;

use super::error::AuthError;
use super::list::{LIST_FILE, List};
use super::own::{self, KEY_FILE, TokenKey};
use crate::file::replace;
use crate::id::random_bytes;

/// Whoever changes the files of a directory holds this meanwhile, in whichever process.
pub(super) fn lock(directory: &Path) -> Result<File, AuthError> {
    let opened = File::open(directory).map_err(AuthError::file("open", directory))?;
    opened.lock().map_err(AuthError::file("lock", directory))?;
    Ok(opened)
}

pub(super) fn missing(path: &Path) -> AuthError {
    let why = "it is missing, and token.key is there: tokens that were revoked would be accepted again".to_owned();
    AuthError::List { path: path.to_owned(), why }
}

pub(super) fn of_another_key(path: &Path) -> AuthError {
    AuthError::List { path: path.to_owned(), why: "it goes with another token.key".to_owned() }
}

/// The key and the list in a directory; makes both when there is no key.
pub(super) fn open(directory: &Path) -> Result<(TokenKey, List), AuthError> {
    let _locked = lock(directory)?;
    let (key_path, list_path) = (directory.join(KEY_FILE), directory.join(LIST_FILE));
    let list = List::load(&list_path)?;
    match (TokenKey::load(&key_path)?, list) {
        (Some(key), Some(list)) if list.key == key.kid => Ok((key, list)),
        (Some(_), Some(_)) => Err(of_another_key(&list_path)),
        (Some(_), None) => Err(missing(&list_path)),
        (None, list) => {
            let seed = random_bytes();
            let key = TokenKey::from_seed(&seed)?;
            let mut list = list.map_or_else(|| List::new(&key.kid), |list| list.of_another_key(&key.kid));
            // The list first: a key without its list is refused, a list without its key is made anew here.
            list.save(&list_path)?;
            own::write(&key_path, &seed).map_err(AuthError::file("write", &key_path))?;
            Ok((key, list))
        }
    }
}

/// Copies the files of a data directory to another one that has none, if they are intact. Says whether there were any.
///
/// # Errors
/// [`AuthError`] when they are not, or cannot be written; nothing of use is at `to` then.
///
/// # Cost
/// Blocking file IO: two reads, two writes with two syncs each.
pub fn copy_files(from: &Path, to: &Path) -> Result<bool, AuthError> {
    let (key_path, list_path) = (from.join(KEY_FILE), from.join(LIST_FILE));
    let list = List::load(&list_path)?;
    let key = TokenKey::load(&key_path)?;
    if let Some(key) = &key {
        match &list {
            None => return Err(missing(&list_path)),
            Some(list) if list.key != key.kid => return Err(of_another_key(&list_path)),
            Some(_) => {}
        }
    }
    // In the order in which they are made.
    for (name, is_there) in [(LIST_FILE, list.is_some()), (KEY_FILE, key.is_some())] {
        if is_there {
            let bytes = std::fs::read(from.join(name)).map_err(AuthError::file("read", &from.join(name)))?;
            replace(&to.join(name), &bytes).map_err(AuthError::file("write", &to.join(name)))?;
        }
    }
    Ok(list.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_copied_together_or_not_at_all() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = |folder: &Path| fs::read_dir(folder).unwrap().count();
        assert!(!copy_files(from.path(), to.path()).unwrap());
        let (key, _) = open(from.path()).unwrap();
        let list = from.path().join(LIST_FILE);
        let good = fs::read(&list).unwrap();
        for wrong in [Some(&good[1..]), None] {
            match wrong {
                Some(bytes) => fs::write(&list, bytes).unwrap(),
                None => fs::remove_file(&list).unwrap(),
            }
            assert_eq!(copy_files(from.path(), to.path()).unwrap_err().code(), "E0212");
            assert_eq!(left(to.path()), 0);
        }
        fs::write(&list, &good).unwrap();
        assert!(copy_files(from.path(), to.path()).unwrap());
        assert_eq!(open(to.path()).unwrap().0.kid, key.kid);
        assert_eq!(fs::metadata(to.path().join(KEY_FILE)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn wherever_making_them_ends_it_is_made_up_for() {
        let folder = tempfile::tempdir().unwrap();
        let (key, list) = (folder.path().join(KEY_FILE), folder.path().join(LIST_FILE));
        let (first, _) = open(folder.path()).unwrap();
        // The power went after the list was written, and a rest of the key is there that others could read.
        fs::rename(&key, folder.path().join("token.key.new")).unwrap();
        fs::set_permissions(folder.path().join("token.key.new"), fs::Permissions::from_mode(0o644)).unwrap();
        let (second, made) = open(folder.path()).unwrap();
        assert_ne!(first.kid, second.kid);
        assert_eq!(made.key, second.kid);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&list).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open(folder.path()).unwrap().0.kid, second.kid);
    }
}
