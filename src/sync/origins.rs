//! Where rows entered the network, as frames say it: by their place in a list.

use std::collections::HashMap;
use std::hash::Hash;

use super::wire;
use crate::history::Origin;
use crate::id::truncated;
use crate::log::record::Admission;

/// Items that rows name by their place.
pub(super) struct Dictionary<T> {
    pub(super) items: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T> Default for Dictionary<T> {
    fn default() -> Self {
        Self { items: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Dictionary<T> {
    pub(super) fn place_of(&mut self, item: T) -> u32 {
        if let Some(place) = self.places.get(&item) {
            return *place;
        }
        let place = self.items.len() as u32;
        self.items.push(item.clone());
        self.places.insert(item, place);
        place
    }
}

pub(super) fn origin_to_wire(origin: &Origin) -> wire::Origin {
    let principal = truncated(&origin.principal, wire::PRINCIPAL_BYTES_MAX).to_owned();
    let admission = match origin.admission {
        Admission::Local => 0,
        Admission::Structural => 1,
        Admission::Full => 2,
    };
    wire::Origin { node: origin.node, principal, admission, rules_version: origin.rules_version }
}

pub(super) fn origin_from_wire(origin: &wire::Origin) -> Origin {
    let admission = match origin.admission {
        0 => Admission::Local,
        1 => Admission::Structural,
        _ => Admission::Full,
    };
    Origin { node: origin.node, principal: origin.principal.clone(), admission, rules_version: origin.rules_version }
}
