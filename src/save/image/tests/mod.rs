//! Tests of the image: round trips, damage, files.

mod round_trip;
