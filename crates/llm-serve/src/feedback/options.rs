//! Options of the ranking page.

use llm_feedback::store::Policy;

/// Options of [`crate::feedback::FeedbackServer::start`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeedbackOptions {
    /// How items are given to annotators, and the guideline.
    pub policy: Policy,
    /// Whether each annotator needs a token ([`llm_feedback::store::Store::add_annotator`]). Always so while the server listens on an
    /// address that is not loopback. Default false: annotators give their name.
    pub tokens: bool,
    /// Whether the page asks for grades of each answer: accuracy, helpfulness and safety. Default false.
    pub grades: bool,
    /// The annotators who can see the report, which names the models, where tokens are needed. Without tokens everybody can.
    pub admins: Vec<String>,
    /// Names in the header `Host` that are accepted besides loopback names, while the server listens on a loopback address. So no page of
    /// another site can reach it under a name of its own (DNS rebinding).
    pub hosts: Vec<String>,
}
