//! Tests of the image: round trips, damage, files.

#[cfg(test)]
mod round_trip;
