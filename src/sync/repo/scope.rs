//! What a client sees and where its documents go, by the path it connected to.

use crate::id::{CollectionName, IdError};

/// What one socket serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoScope {
    collection: CollectionName,
    confined: bool,
}

impl RepoScope {
    /// Serves every collection, and creates in the unnamed one.
    #[must_use]
    pub fn everything() -> Self {
        Self { collection: CollectionName::unnamed(), confined: false }
    }

    /// Reads a path: `/sync` serves every collection and creates in `default`, `/sync/{collection}` serves that one
    /// alone. `None` for a path that is nothing of the kind.
    ///
    /// # Errors
    /// [`IdError::Collection`] when the collection has a name that none may have.
    pub fn of_path(path: &str) -> Result<Option<Self>, IdError> {
        let Some(rest) = path.strip_prefix("/sync") else { return Ok(None) };
        match rest {
            "" | "/" => Ok(Some(Self::everything())),
            rest => match rest.strip_prefix('/') {
                Some(name) => Ok(Some(Self { collection: CollectionName::new(name)?, confined: true })),
                None => Ok(None),
            },
        }
    }

    /// Where a document goes that a client here creates.
    #[must_use]
    pub fn collection(&self) -> &CollectionName {
        &self.collection
    }

    /// Whether documents of `collection` are served here.
    #[must_use]
    pub fn serves(&self, collection: &CollectionName) -> bool {
        !self.confined || *collection == self.collection
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_served_and_where_new_documents_go() {
        let notes = CollectionName::new("notes").unwrap();
        for path in ["/sync", "/sync/"] {
            let scope = RepoScope::of_path(path).unwrap().unwrap();
            assert_eq!(scope.collection().as_str(), "default");
            assert!(scope.serves(&notes));
        }
        let scope = RepoScope::of_path("/sync/notes").unwrap().unwrap();
        assert_eq!(scope.collection(), &notes);
        assert!(scope.serves(&notes) && !scope.serves(&CollectionName::new("default").unwrap()));
        assert_eq!(RepoScope::of_path("/synchronise").unwrap(), None);
        assert_eq!(RepoScope::of_path("/").unwrap(), None);
        assert!(RepoScope::of_path("/sync/a/b").is_err());
        assert!(RepoScope::of_path("/sync/../b").is_err());
    }
}
