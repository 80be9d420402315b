//! Who may link to us, and as what.
//!
//! A key is admitted because it is on the list, because it shows an invite that is out (it then goes on the list), or
//! because the policy for unknown keys says so. Everything here lives in memory; the owner loads it and saves it.
//!
//! Striking a key off the list does not close its links: whoever strikes it off closes them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::id::NodeId;

use super::error::NetError;
use super::link::canonical;
use super::ticket::Invite;

/// What a peer is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It speaks for itself only, and every change it sends is checked in full.
    Client,
    /// It relays what others have made.
    Node,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Node => "node",
        })
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "client" => Ok(Self::Client),
            "node" => Ok(Self::Node),
            _ => Err("a role is either node or client"),
        }
    }
}

/// What happens to a key that is not on the list and shows no invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownKeys {
    /// It is refused.
    Refuse,
    /// It is a client when it comes from this machine; otherwise it is refused. For a listener on loopback only.
    LoopbackClients,
    /// It is a node when it comes from this machine; otherwise it is refused.
    LoopbackNodes,
}

impl UnknownKeys {
    /// The policy of a listener on `local`: keys from this machine are clients where nobody else can come, and nodes
    /// when the operator says so; anywhere else an unknown key is refused.
    #[must_use]
    pub fn of_listener(local: SocketAddr, trust_loopback_nodes: bool) -> Self {
        match (trust_loopback_nodes, canonical(local).ip().is_loopback()) {
            (true, _) => Self::LoopbackNodes,
            (false, true) => Self::LoopbackClients,
            (false, false) => Self::Refuse,
        }
    }
}

/// Why a key was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmittedBy {
    /// It is on the list.
    List,
    /// It has used up an invite and is on the list now: the owner saves the list.
    Invite,
    /// It comes from this machine, and the policy says that is enough. It is not on the list.
    Loopback,
    /// Its user is to prove himself. It is not on the list.
    User,
}

/// The verdict on a key that may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// As what.
    pub role: Role,
    /// Why.
    pub by: AdmittedBy,
}

/// An invite that nobody has used yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutstandingInvite {
    /// The secret.
    pub invite: Invite,
    /// What it makes of the key that shows it.
    pub role: Role,
    /// From then on it is of no use.
    pub expires: SystemTime,
}

/// The list, shared between all its clones. Every judgement sees the last edit.
#[derive(Clone)]
pub struct AllowList {
    /// Held for lines, never across an await. Every edit is one step, so a panic elsewhere leaves nothing half done.
    state: Arc<Mutex<State>>,
    unknown: UnknownKeys,
}

#[derive(Default)]
struct State {
    roles: BTreeMap<NodeId, Role>,
    invites: Vec<OutstandingInvite>,
    /// Any key may be a client's.
    users: bool,
}

impl AllowList {
    /// How long an invite is of use.
    pub const INVITE_LIFETIME: Duration = Duration::from_secs(600);
    /// Invites that may be out at a time.
    pub const INVITES_MAX: usize = 64;

    /// An empty list.
    #[must_use]
    pub fn new(unknown: UnknownKeys) -> Self {
        Self { state: Arc::default(), unknown }
    }

    /// Puts `node` on the list as `role`, in place of what it was. Returns what it was.
    pub fn allow(&self, node: NodeId, role: Role) -> Option<Role> {
        self.state().roles.insert(node, role)
    }

    /// Strikes `node` off. Its next handshake is refused; its open links are the caller's to close.
    pub fn remove(&self, node: NodeId) -> Option<Role> {
        self.state().roles.remove(&node)
    }

    /// What `node` is on the list.
    #[must_use]
    pub fn role(&self, node: NodeId) -> Option<Role> {
        self.state().roles.get(&node).copied()
    }

    /// Everybody on the list, by key.
    #[must_use]
    pub fn entries(&self) -> Vec<(NodeId, Role)> {
        self.state().roles.iter().map(|(node, role)| (*node, *role)).collect()
    }

    /// Makes an invite that admits one key as `role` within [`Self::INVITE_LIFETIME`] of `now`.
    ///
    /// # Errors
    /// [`NetError::TooManyInvites`] when [`Self::INVITES_MAX`] are out.
    pub fn invite(&self, role: Role, now: SystemTime) -> Result<Invite, NetError> {
        let invite = Invite::random();
        let expires = now + Self::INVITE_LIFETIME;
        self.put_out(OutstandingInvite { invite: invite.clone(), role, expires }, now)?;
        Ok(invite)
    }

    /// Puts out an invite that was made elsewhere or before a restart. One that has expired is left out.
    ///
    /// # Errors
    /// [`NetError::TooManyInvites`] when [`Self::INVITES_MAX`] are out.
    pub fn put_out(&self, invite: OutstandingInvite, now: SystemTime) -> Result<(), NetError> {
        let mut state = self.state();
        state.forget_expired(now);
        if state.invites.len() >= Self::INVITES_MAX {
            return Err(NetError::TooManyInvites { max: Self::INVITES_MAX });
        }
        if invite.expires > now {
            state.invites.push(invite);
        }
        Ok(())
    }

    /// The invites that are out, oldest first.
    #[must_use]
    pub fn invites(&self, now: SystemTime) -> Vec<OutstandingInvite> {
        let mut state = self.state();
        state.forget_expired(now);
        state.invites.clone()
    }

    /// Whether an unknown key is worth hearing: an invite is out, and its first frame may hold it.
    #[must_use]
    pub fn awaits_invite(&self, now: SystemTime) -> bool {
        let mut state = self.state();
        state.forget_expired(now);
        !state.invites.is_empty()
    }

    /// Says whether `node`, who comes from `remote`, may stay, and as what.
    ///
    /// Ask it without an invite right after the handshake. When that is refused and [`Self::awaits_invite`], read the
    /// first frame and ask again with the invite it holds. An invite of use is used up, and the key goes on the list.
    /// A key on the list stays whatever invite it shows, so that an old ticket goes on working; an invite of use for
    /// more than it is raises its role.
    ///
    /// # Errors
    /// [`NetError::InviteRefused`] when an unknown key shows an invite that is of no use, even where it would be
    /// admitted without, so that nobody gets less than it was promised and does not hear of it.
    /// [`NetError::NotAllowed`] for any other unknown key, unless [users](Self::let_users_in) come with any.
    pub fn judge(
        &self,
        node: NodeId,
        remote: SocketAddr,
        invite: Option<&Invite>,
        now: SystemTime,
    ) -> Result<Admission, NetError> {
        let admission = match self.judge_key(node, remote, invite, now) {
            Err(NetError::NotAllowed { .. }) if self.state().users => {
                Admission { role: Role::Client, by: AdmittedBy::User }
            }
            judged => judged?,
        };
        Ok(admission)
    }

    /// Lets any key in as a client's from now on: who may come is asked of users, who prove themselves.
    pub fn let_users_in(&self) {
        self.state().users = true;
    }

    fn judge_key(
        &self,
        node: NodeId,
        remote: SocketAddr,
        invite: Option<&Invite>,
        now: SystemTime,
    ) -> Result<Admission, NetError> {
        let mut state = self.state();
        let known = state.roles.get(&node).copied();
        if let Some(invite) = invite {
            if let Some(role) = state.use_up(invite, known, now) {
                state.roles.insert(node, role);
                return Ok(Admission { role, by: AdmittedBy::Invite });
            }
            if known.is_none() {
                return Err(NetError::InviteRefused { node });
            }
        }
        if let Some(role) = known {
            return Ok(Admission { role, by: AdmittedBy::List });
        }
        match self.unknown {
            UnknownKeys::LoopbackClients if is_loopback(remote) => {
                Ok(Admission { role: Role::Client, by: AdmittedBy::Loopback })
            }
            UnknownKeys::LoopbackNodes if is_loopback(remote) => {
                Ok(Admission { role: Role::Node, by: AdmittedBy::Loopback })
            }
            UnknownKeys::Refuse | UnknownKeys::LoopbackClients | UnknownKeys::LoopbackNodes => {
                Err(NetError::NotAllowed { node })
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_expired(&mut self, now: SystemTime) {
        self.invites.retain(|invite| invite.expires > now);
    }

    /// Takes `shown` out of the invites, if it is there in time and gives more than `known`. Returns what it gives.
    fn use_up(&mut self, shown: &Invite, known: Option<Role>, now: SystemTime) -> Option<Role> {
        self.forget_expired(now);
        let place = self.invites.iter().position(|out| out.invite == *shown)?;
        if known >= Some(self.invites[place].role) {
            return None;
        }
        Some(self.invites.remove(place).role)
    }
}

impl fmt::Debug for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllowList").field("unknown", &self.unknown).field("entries", &self.entries()).finish()
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    canonical(address).ip().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([1; 32]);
    const OTHER: NodeId = NodeId([2; 32]);

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn outside() -> SocketAddr {
        at("192.0.2.1:4400")
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn admitted(role: Role, by: AdmittedBy) -> Admission {
        Admission { role, by }
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_command_that_allows_it() {
        let list = AllowList::new(UnknownKeys::Refuse);
        for remote in [outside(), at("127.0.0.1:1")] {
            let error = list.judge(NODE, remote, None, now()).unwrap_err();
            assert!(matches!(error, NetError::NotAllowed { node: NODE }));
            assert!(error.to_string().contains(&format!("tidelog peer add {NODE}")), "{error}");
        }
    }

    #[test]
    fn an_edit_of_one_clone_counts_for_all_from_the_next_judgement_on() {
        let list = AllowList::new(UnknownKeys::Refuse);
        let clone = list.clone();
        assert_eq!(clone.allow(NODE, Role::Client), None);
        assert_eq!(list.judge(NODE, outside(), None, now()).unwrap(), admitted(Role::Client, AdmittedBy::List));
        assert_eq!(clone.allow(NODE, Role::Node), Some(Role::Client));
        assert_eq!(list.entries(), [(NODE, Role::Node)]);
        assert_eq!(list.remove(NODE), Some(Role::Node));
        assert!(clone.judge(NODE, outside(), None, now()).is_err());
    }

    #[test]
    fn only_this_machine_is_trusted_without_a_list_and_only_as_the_policy_says() {
        for (policy, role) in [
            (UnknownKeys::Refuse, None),
            (UnknownKeys::LoopbackClients, Some(Role::Client)),
            (UnknownKeys::LoopbackNodes, Some(Role::Node)),
        ] {
            let list = AllowList::new(policy);
            for here in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
                let verdict = list.judge(NODE, at(here), None, now());
                assert_eq!(verdict.ok().map(|admission| admission.role), role, "{here} under {policy:?}");
            }
            for there in ["192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1", "0.0.0.0:1"] {
                assert!(list.judge(NODE, at(there), None, now()).is_err(), "{there} under {policy:?}");
            }
            assert!(list.entries().is_empty(), "nobody is listed by coming");
        }
        assert_eq!(UnknownKeys::of_listener(at("127.0.0.1:1"), false), UnknownKeys::LoopbackClients);
        assert_eq!(UnknownKeys::of_listener(at("0.0.0.0:1"), false), UnknownKeys::Refuse);
        assert_eq!(UnknownKeys::of_listener(at("[::]:1"), false), UnknownKeys::Refuse);
        assert_eq!(UnknownKeys::of_listener(at("127.0.0.1:1"), true), UnknownKeys::LoopbackNodes);
    }

    #[test]
    fn an_invite_admits_one_key_once_and_lists_it() {
        let list = AllowList::new(UnknownKeys::Refuse);
        assert!(!list.awaits_invite(now()));
        let invite = list.invite(Role::Node, now()).unwrap();
        assert!(list.awaits_invite(now()));
        assert!(list.judge(NODE, outside(), None, now()).is_err(), "being out is not being shown");
        let verdict = list.judge(NODE, outside(), Some(&invite), now()).unwrap();
        assert_eq!(verdict, admitted(Role::Node, AdmittedBy::Invite));
        assert_eq!(list.role(NODE), Some(Role::Node));
        assert!(!list.awaits_invite(now()));
        assert!(matches!(
            list.judge(OTHER, outside(), Some(&invite), now()),
            Err(NetError::InviteRefused { node: OTHER })
        ));
        // The ticket with the used invite goes on working for its key.
        let verdict = list.judge(NODE, outside(), Some(&invite), now()).unwrap();
        assert_eq!(verdict, admitted(Role::Node, AdmittedBy::List));
    }

    #[test]
    fn an_invite_ends_after_ten_minutes_to_the_second() {
        let list = AllowList::new(UnknownKeys::LoopbackClients);
        let invite = list.invite(Role::Node, now()).unwrap();
        let end = now() + AllowList::INVITE_LIFETIME;
        assert_eq!(list.invites(end - Duration::from_secs(1)).len(), 1);
        let error = list.judge(NODE, at("127.0.0.1:1"), Some(&invite), end).unwrap_err();
        assert!(matches!(error, NetError::InviteRefused { node: NODE }), "not a client unawares: {error}");
        assert!(list.invites(end).is_empty());
        let made_up = Invite::random();
        assert!(list.judge(NODE, outside(), Some(&made_up), now()).is_err());
    }

    #[test]
    fn an_invite_raises_a_role_and_never_lowers_it() {
        let list = AllowList::new(UnknownKeys::Refuse);
        list.allow(NODE, Role::Client);
        let invite = list.invite(Role::Node, now()).unwrap();
        assert_eq!(list.judge(NODE, outside(), Some(&invite), now()).unwrap().role, Role::Node);
        let lesser = list.invite(Role::Client, now()).unwrap();
        assert_eq!(list.judge(NODE, outside(), Some(&lesser), now()).unwrap(), admitted(Role::Node, AdmittedBy::List));
        assert!(list.awaits_invite(now()), "the lesser invite is still there for another");
    }

    #[test]
    fn invites_are_bounded_saved_and_put_out_again() {
        let list = AllowList::new(UnknownKeys::Refuse);
        for _ in 0..AllowList::INVITES_MAX {
            list.invite(Role::Client, now()).unwrap();
        }
        assert!(matches!(list.invite(Role::Client, now()), Err(NetError::TooManyInvites { .. })));
        let later = now() + AllowList::INVITE_LIFETIME;
        let invite = list.invite(Role::Client, later).unwrap();

        let restarted = AllowList::new(UnknownKeys::Refuse);
        for saved in list.invites(later) {
            restarted.put_out(saved, later).unwrap();
        }
        assert!(restarted.judge(NODE, outside(), Some(&invite), later).is_ok());
        assert!(!format!("{list:?}").contains(&invite.to_string()));
    }

    #[test]
    fn roles_read_back() {
        for role in [Role::Client, Role::Node] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("admin".parse::<Role>().is_err());
    }
}
