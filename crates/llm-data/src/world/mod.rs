//! The built-in world.
