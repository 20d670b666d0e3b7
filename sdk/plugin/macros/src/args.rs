//! What stands between the parentheses of `#[plugin(...)]`.
use proc_macro2::TokenStream;
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Ident, LitStr, Token, bracketed};

/// The most outputs or metrics a plugin may name; the host refuses more.
const NAMES_MAX: usize = 64;

/// The names a plugin declares.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) outputs: Vec<LitStr>,
    pub(crate) metrics: Vec<LitStr>,
}

impl Args {
    /// `const OUTPUTS` and `const METRICS` of the `impl Plugin`.
    pub(crate) fn constants(&self) -> TokenStream {
        let (outputs, metrics) = (&self.outputs, &self.metrics);
        quote! {
            const OUTPUTS: &'static [&'static str] = &[#(#outputs),*];
            const METRICS: &'static [&'static str] = &[#(#metrics),*];
        }
    }
}

impl Parse for Args {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut args = Self::default();
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            input.parse::<Token![=]>()?;
            let list;
            bracketed!(list in input);
            let names: Vec<LitStr> = Punctuated::<LitStr, Token![,]>::parse_terminated(&list)?.into_iter().collect();
            check(&names)?;
            match key.to_string().as_str() {
                "outputs" => args.outputs = names,
                "metrics" => args.metrics = names,
                _ => return Err(syn::Error::new(key.span(), "unknown argument; `outputs` and `metrics` are known")),
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(args)
    }
}

/// Names must be there, differ, and be few.
fn check(names: &[LitStr]) -> syn::Result<()> {
    for (at, name) in names.iter().enumerate() {
        if name.value().is_empty() {
            return Err(syn::Error::new(name.span(), "a name may not be empty"));
        }
        if names[..at].iter().any(|earlier| earlier.value() == name.value()) {
            return Err(syn::Error::new(name.span(), "this name is in the list twice"));
        }
        if at == NAMES_MAX {
            return Err(syn::Error::new(name.span(), format!("at most {NAMES_MAX} names")));
        }
    }
    Ok(())
}
