//! A function as a plugin: `fn low_pressure(record, out)` becomes the type `LowPressure`.
use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::{FnArg, ItemFn, Type, parse_quote};

use crate::args::Args;
use crate::names;

/// The function, its type, the `impl Plugin` and the exports.
pub(crate) fn expand(args: &Args, mut function: ItemFn) -> syn::Result<TokenStream> {
    let config = config_type(&function)?;
    let body = names::resolve(args, &function.sig, function.block.to_token_stream())?;
    function.block = syn::parse2(body)?;

    let name = function.sig.ident.clone();
    let plugin = format_ident!("{}", camel_case(&name.to_string()), span = name.span());
    let doc = format!("The plugin made of [`{name}`].");
    let visibility = &function.vis;
    let constants = args.constants();
    let (config_type, call): (Type, TokenStream) = match config {
        Some(config) => (config, quote!(#name(&self.config, record, out))),
        None => (parse_quote!(::weir_plugin::NoConfig), quote!(#name(record, out))),
    };
    Ok(quote! {
        #function

        #[doc = #doc]
        #[allow(dead_code)]
        #visibility struct #plugin {
            config: #config_type,
        }

        impl ::weir_plugin::Plugin for #plugin {
            type Config = #config_type;
            #constants

            fn init(
                config: Self::Config,
                _outputs: &::weir_plugin::Outputs<'_>,
            ) -> ::core::result::Result<Self, ::weir_plugin::InitError> {
                Ok(Self { config })
            }

            #[inline]
            fn process(
                &mut self,
                record: ::weir_plugin::Record<'_>,
                out: &mut ::weir_plugin::Out<'_>,
            ) -> ::weir_plugin::Result {
                #call
            }
        }

        ::weir_plugin::export!(#plugin);
    })
}

/// The type behind the reference of a leading `config` parameter.
fn config_type(function: &ItemFn) -> syn::Result<Option<Type>> {
    const SHAPE: &str = "a plugin function takes (record: Record<'_>, out: &mut Out<'_>) or (config: &Config, record, out)";
    let inputs = &function.sig.inputs;
    match (inputs.len(), inputs.first()) {
        (2, _) => Ok(None),
        (3, Some(FnArg::Typed(first))) => match &*first.ty {
            Type::Reference(reference) if reference.mutability.is_none() => Ok(Some((*reference.elem).clone())),
            other => Err(syn::Error::new_spanned(other, "the configuration is passed by reference: `config: &Config`")),
        },
        _ => Err(syn::Error::new_spanned(&function.sig, SHAPE)),
    }
}

fn camel_case(name: &str) -> String {
    let mut camel = String::new();
    for word in name.trim_start_matches("r#").split('_') {
        let mut letters = word.chars();
        camel.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        camel.extend(letters);
    }
    camel
}
