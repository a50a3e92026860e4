//! Tests of the image: round trips, damage, what the writer refuses.

#[cfg(test)]
mod damage;
#[cfg(test)]
mod durable;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod writing;
