//! A server of the OpenAI API for a model of this workspace.
