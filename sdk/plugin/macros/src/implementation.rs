//! `impl Plugin for T` as a plugin: the names of outputs and metrics are added, literals in its methods looked up.
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{ImplItem, ItemImpl};

use crate::args::Args;
use crate::names;

/// The implementation with `OUTPUTS` and `METRICS`, and the exports.
pub(crate) fn expand(args: &Args, mut implementation: ItemImpl) -> syn::Result<TokenStream> {
    let is_plugin = implementation
        .trait_
        .as_ref()
        .and_then(|(path, _)| path.segments.last())
        .is_some_and(|segment| segment.ident == "Plugin");
    if !is_plugin {
        return Err(syn::Error::new_spanned(&implementation.self_ty, "#[plugin] needs an `impl Plugin for ...`"));
    }
    for item in &mut implementation.items {
        if let ImplItem::Fn(method) = item {
            let body = names::resolve(args, &method.sig, method.block.to_token_stream())?;
            method.block = syn::parse2(body)?;
        }
    }
    let constants = args.constants();
    let constants: ItemImpl = syn::parse2(quote!(impl Constants { #constants }))?;
    implementation.items.splice(0..0, constants.items);
    let plugin = &implementation.self_ty;
    Ok(quote! {
        #implementation

        ::weir_plugin::export!(#plugin);
    })
}
