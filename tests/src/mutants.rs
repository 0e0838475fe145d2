//! Changed copies of a file, each a function of the file's name and a number.

use dsd_random::Stream;

/// Text and numbers that are larger, smaller or longer than what stands there.
const NUMBERS: [&str; 6] = ["99999999999999999999", "-1", "1e308", "18446744073709551615", "0", "nan"];
const VALUES: [u64; 7] = [0, 1, u64::MAX, u64::MAX - 1, u64::MAX >> 1, 1 << 63, 100_000_000];

/// Mutant `index` of some bytes: one to three changes, each of them a cut, flipped bits, a field with a special value, a
/// piece dropped, doubled or copied over another, or a decimal number replaced. `other` is spliced in now and then.
#[must_use]
pub fn mutant(bytes: &[u8], other: &[u8], name: &str, index: u64) -> Vec<u8> {
    let mut stream = Stream::new(13, name, 0, index);
    let mut made = bytes.to_vec();
    for _ in 0..1 + stream.below(3) {
        if made.is_empty() {
            break;
        }
        let at = stream.below(made.len());
        let rest = made.len() - at;
        match stream.below(9) {
            0 => made.truncate(at),
            1 => {
                for _ in 0..1 + stream.below(8) {
                    let at = stream.below(made.len());
                    made[at] ^= 1 << stream.below(8);
                }
            }
            2 => {
                let value = VALUES[stream.below(VALUES.len())];
                let width = [1, 2, 4, 8][stream.below(4)].min(rest);
                let order = if stream.chance(0.5) { value.to_le_bytes() } else { value.to_be_bytes() };
                // The low bytes of either order.
                let low = if order == value.to_le_bytes() { &order[..width] } else { &order[8 - width..] };
                made[at..at + width].copy_from_slice(low);
            }
            3 => {
                let piece = made[at..at + 1 + stream.below(rest.min(64))].to_vec();
                let to = stream.below(made.len());
                made.splice(to..to, piece);
            }
            4 => drop(made.drain(at..at + 1 + stream.below(rest.min(64)))),
            5 => {
                let piece = 16.min(made.len());
                let (from, to) = (stream.below(made.len() - piece + 1), stream.below(made.len() - piece + 1));
                made.copy_within(from..from + piece, to);
            }
            6 => {
                let digits: Vec<usize> = (0..made.len()).filter(|at| made[*at].is_ascii_digit()).collect();
                if let Some(at) = digits.get(stream.below(digits.len().max(1))) {
                    made.splice(*at..=*at, NUMBERS[stream.below(NUMBERS.len())].bytes());
                }
            }
            7 => {
                let end = stream.below(made.len());
                made.swap(at, end);
            }
            _ => {
                let from = stream.below(other.len().max(1)).min(other.len());
                made.truncate(at);
                made.extend_from_slice(&other[from..]);
            }
        }
    }
    made
}
