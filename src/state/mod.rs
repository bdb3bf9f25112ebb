//! What the process knows of mirrors and images, and where that comes from.

pub mod file;
