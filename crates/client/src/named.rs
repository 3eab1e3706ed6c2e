//! The name of each variant of an enum, and the list of all names, from one table: a variant that
//! is new cannot be missing in the list.

macro_rules! named {
    (
        impl $kind:ident {
            $(#[$about:meta])*
            $visibility:vis fn $name:ident;
            $(#[$about_all:meta])*
            const $all:ident;
            $($variant:ident => $text:literal,)+
        }
    ) => {
        impl $kind {
            $(#[$about_all])*
            #[cfg_attr(
                not(feature = "metrics"),
                allow(dead_code, reason = "counted where there are metrics")
            )]
            pub(crate) const $all: &[&'static str] = &[$($text),+];

            $(#[$about])*
            $visibility fn $name(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $text,)+
                }
            }
        }
    };
}

pub(crate) use named;
