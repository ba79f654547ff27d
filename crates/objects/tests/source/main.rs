//! The directory source as its users meet it: files in, views and status files out.

mod conversion;
mod conversion_cluster;
mod examples;
mod files;
mod front_ends;
mod last_good;
mod many_edits;
mod scale;
mod scratch;
mod writes;
