//! Paths: which value inside a document is meant.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// The way from the root of a document to a value: one step per map key or list index.
///
/// A step is text. Where it meets a map it is a key, where it meets a list it is an index in decimal; whether `0` is a
/// key or an index is thus decided by the document, not by the path. The empty path is the whole document.
///
/// A text is read as follows, and every text is a path:
///
/// - beginning with `/`: a JSON Pointer (RFC 6901), so `/items/0/title`; `~1` is a `/` in a key, `~0` a `~`;
/// - else: steps joined by dots, so `items.0.title`; `\.` is a dot in a key, `\\` a backslash, and `\/` allows a first
///   key that begins with a slash. A backslash before anything else is itself.
///
/// A step `-` at the end names the place behind the last element of a list, where writing appends.
///
/// ```
/// use tidelog::document::Path;
/// assert_eq!(Path::from("items.0.title"), Path::from("/items/0/title"));
/// assert_eq!(Path::from(r"a\.b.c"), Path::root().join("a.b").join("c"));
/// assert_eq!(Path::from(["a/b"]).to_string(), "/a~1b");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Path(Vec<String>);

impl Path {
    /// The whole document.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// This path and one step more, taken literally.
    #[must_use]
    pub fn join(mut self, step: impl fmt::Display) -> Self {
        self.0.push(step.to_string());
        self
    }

    /// The steps from the root.
    #[must_use]
    pub fn steps(&self) -> &[String] {
        &self.0
    }
}

impl From<&str> for Path {
    fn from(text: &str) -> Self {
        match text.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect(),
            None if text.is_empty() => Self::root(),
            None => dotted(text),
        }
    }
}

fn dotted(text: &str) -> Path {
    let mut steps = vec![];
    let mut step = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '.' => steps.push(std::mem::take(&mut step)),
            '\\' => match characters.next_if(|next| matches!(next, '.' | '\\' | '/')) {
                Some(escaped) => step.push(escaped),
                None => step.push('\\'),
            },
            other => step.push(other),
        }
    }
    steps.push(step);
    Path(steps)
}

impl From<&String> for Path {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<String> for Path {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&Self> for Path {
    fn from(path: &Self) -> Self {
        path.clone()
    }
}

impl<const N: usize> From<[&str; N]> for Path {
    /// Takes every element as one step, literally.
    fn from(steps: [&str; N]) -> Self {
        steps.into_iter().collect()
    }
}

impl<S: Into<String>> FromIterator<S> for Path {
    fn from_iter<I: IntoIterator<Item = S>>(steps: I) -> Self {
        Self(steps.into_iter().map(Into::into).collect())
    }
}

impl FromStr for Path {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::from(text))
    }
}

impl fmt::Display for Path {
    /// Writes a JSON Pointer, which [`Path::from`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "/{}", step.replace('~', "~0").replace('/', "~1")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_pointers_name_the_same_steps() {
        for (dotted, pointer, steps) in [
            ("", "", &[][..]),
            ("a", "/a", &["a"]),
            ("a.0.b", "/a/0/b", &["a", "0", "b"]),
            (r"a\.b.c", "/a.b/c", &["a.b", "c"]),
            (r"\/x", "/~1x", &["/x"]),
            (r"a\\.b", r"/a\/b", &[r"a\", "b"]),
            (r"a\n", r"/a\n", &[r"a\n"]),
            ("a..b", "/a//b", &["a", "", "b"]),
            ("~1", "/~01", &["~1"]),
            ("a.", "/a/", &["a", ""]),
        ] {
            let path: Path = steps.iter().copied().collect();
            assert_eq!(Path::from(dotted), path, "{dotted}");
            assert_eq!(Path::from(pointer), path, "{pointer}");
            assert_eq!(path.to_string(), pointer);
        }
    }
}
