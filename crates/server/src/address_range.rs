//! Ranges of IP addresses, as an operator writes them (`10.0.0.0/8`).

use std::net::IpAddr;

/// A range of addresses, `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AddressRange {
    first: IpAddr,
    bits: u8,
}

impl AddressRange {
    /// Reads an address, or one with the number of bits that count.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().ok()?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { first, bits })
    }

    /// Whether the address lies in the range.
    pub(crate) fn holds(self, address: IpAddr) -> bool {
        let (range, asked, all) = match (self.first, address) {
            (IpAddr::V4(range), IpAddr::V4(asked)) => {
                (u128::from(range.to_bits()), u128::from(asked.to_bits()), 32)
            }
            (IpAddr::V6(range), IpAddr::V6(asked)) => (range.to_bits(), asked.to_bits(), 128),
            _ => return false,
        };
        let free = all - u32::from(self.bits);
        range.checked_shr(free).unwrap_or(0) == asked.checked_shr(free).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn s10_ranges_are_addresses_with_bits() {
        for text in [
            "10.0.0.0/33",
            "10.0.0/8",
            "",
            "proxy",
            "::/129",
            "10.0.0.0/",
        ] {
            assert_eq!(AddressRange::parse(text), None, "{text}");
        }
        let all = AddressRange::parse("0.0.0.0/0").unwrap();
        assert!(all.holds("255.1.2.3".parse().unwrap()));
        assert!(!all.holds("::1".parse().unwrap()));
        let v6 = AddressRange::parse("::/0").unwrap();
        assert!(v6.holds("2001::".parse().unwrap()));
    }
}
