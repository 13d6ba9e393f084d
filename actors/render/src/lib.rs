//! The render kind: jobs split into frames, tiles and sample passes.
//!
//! Owns: scenes, tiles, the worker process that holds a Vulkan device, its memory pool and heat
//! map, and tile checkpoints. Sample index and pixel seed the generator, so that a tile that moved
//! to an equal device comes out bit for bit the same.
//!
//! Never does: opening a Vulkan device in the node's own process. Drivers crash and hang; one that
//! does must cost a worker, not the node and every session on it.
