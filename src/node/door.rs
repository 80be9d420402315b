//! Users who come over QUIC: the same rights as on the HTTP port.

use std::pin::Pin;
use std::sync::Arc;

use crate::access::{Access, Vigil};
use crate::net::{Doorkeeper, Visitor, Watch};
use crate::sync::{Leave, Permits, Proven};

/// Lets users in over QUIC.
#[derive(Debug)]
pub(super) struct Door(Access);

impl Door {
    pub(super) fn new(access: Access) -> Self {
        Self(access)
    }
}

impl Doorkeeper for Door {
    fn admit(&self, token: Option<&str>) -> Result<Visitor, String> {
        let subject = self.0.admit(token).map_err(|refusal| refusal.to_string())?;
        let permits = self.0.rules().is_some().then(|| Arc::new(subject.clone()) as Arc<dyn Permits>);
        Ok(Visitor {
            proven: Proven { principal: subject.principal().to_owned(), permits },
            watch: Box::new(Changes(subject.vigil())),
            judge: Some(Arc::new(subject)),
        })
    }
}

struct Changes(Vigil);

impl Watch for Changes {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Leave>> + Send + '_>> {
        Box::pin(self.0.next())
    }
}
