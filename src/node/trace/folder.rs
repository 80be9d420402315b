//! Where the editing histories for tests and benchmarks are.

use std::path::{Path, PathBuf};

use super::TraceError;

/// The environment variable that names the folder of editing histories.
pub const TRACES_VARIABLE: &str = "TIDELOG_TRACES";

/// Finds the folder of editing histories, with its `sequential` and `concurrent` folders.
///
/// It is the one that [`TRACES_VARIABLE`] names, else `../shared/traces` beside the checkout. `None` when the variable
/// is unset and that folder is absent: whoever needs it then says that it was skipped.
///
/// # Errors
/// [`TraceError::Folder`] when the variable is set to something that is not a readable folder: a wrong setting must
/// not pass for an absent one.
pub fn traces_folder() -> Result<Option<PathBuf>, TraceError> {
    locate(std::env::var_os(TRACES_VARIABLE).map(PathBuf::from), Path::new(env!("CARGO_MANIFEST_DIR")))
}

fn locate(named: Option<PathBuf>, checkout: &Path) -> Result<Option<PathBuf>, TraceError> {
    match named {
        Some(folder) => match std::fs::read_dir(&folder) {
            Ok(_) => Ok(Some(folder)),
            Err(source) => Err(TraceError::Folder { folder, source }),
        },
        None => {
            let folder = checkout.join("..").join("shared").join("traces");
            Ok(folder.is_dir().then_some(folder))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_named_must_be_readable_and_an_absent_one_is_none() {
        let parent = tempfile::tempdir().unwrap();
        let checkout = parent.path().join("checkout");
        std::fs::create_dir(&checkout).unwrap();
        assert!(locate(None, &checkout).unwrap().is_none());
        let missing = parent.path().join("missing");
        assert!(matches!(locate(Some(missing), &checkout), Err(TraceError::Folder { .. })));
        assert!(matches!(locate(Some(PathBuf::new()), &checkout), Err(TraceError::Folder { .. })));
        std::fs::create_dir_all(parent.path().join("shared/traces")).unwrap();
        assert!(locate(None, &checkout).unwrap().is_some());
        assert_eq!(locate(Some(checkout.clone()), &checkout).unwrap(), Some(checkout));
    }
}
