//! Names given as literals become indices: `out.keep_to("alerts")` → `out.keep_to(Output::nth(0))`.
//!
//! Only calls on the function's own `out` parameter are touched. Every other place (a helper function, a name computed
//! while running) is looked up then, and an unknown name rejects the record with a message that lists the known ones.
use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::{FnArg, Ident, LitStr, Pat, Signature};

use crate::args::Args;

/// Looks up every literal name in a function's body.
pub(crate) fn resolve(args: &Args, signature: &Signature, body: TokenStream) -> syn::Result<TokenStream> {
    match out_parameter(signature) {
        Some(out) => walk(args, &out, body),
        None => Ok(body),
    }
}

/// The last parameter's name: the `out` of `process`, `batch_end` or a plugin function.
fn out_parameter(signature: &Signature) -> Option<Ident> {
    let FnArg::Typed(last) = signature.inputs.last()? else { return None };
    let Pat::Ident(pattern) = &*last.pat else { return None };
    Some(pattern.ident.clone())
}

fn walk(args: &Args, out: &Ident, tokens: TokenStream) -> syn::Result<TokenStream> {
    let mut done: Vec<TokenTree> = Vec::new();
    for token in tokens {
        let TokenTree::Group(group) = token else {
            done.push(token);
            continue;
        };
        let inner = walk(args, out, group.stream())?;
        let inner = match called_method(&done, out) {
            Some(method) if group.delimiter() == Delimiter::Parenthesis => first_argument(args, &method, inner)?,
            _ => inner,
        };
        let mut replaced = Group::new(group.delimiter(), inner);
        replaced.set_span(group.span());
        done.push(TokenTree::Group(replaced));
    }
    Ok(done.into_iter().collect())
}

/// The method if the tokens so far end in `out.method`, and `out` is not itself a field of something.
fn called_method(before: &[TokenTree], out: &Ident) -> Option<String> {
    let [rest @ .., TokenTree::Ident(receiver), TokenTree::Punct(dot), TokenTree::Ident(method)] = before else {
        return None;
    };
    let is_field = matches!(rest.last(), Some(TokenTree::Punct(punct)) if punct.as_char() == '.');
    (receiver == out && dot.as_char() == '.' && !is_field).then(|| method.to_string())
}

/// Replaces a leading string literal by its index, if the method takes a name first.
fn first_argument(args: &Args, method: &str, arguments: TokenStream) -> syn::Result<TokenStream> {
    let (kind, names, path) = match method {
        "keep_to" | "emit" | "emit_at" => ("output", &args.outputs, quote!(::weir_plugin::Output::nth)),
        "count" => ("metric", &args.metrics, quote!(::weir_plugin::Metric::nth)),
        _ => return Ok(arguments),
    };
    let mut rest = arguments.clone().into_iter();
    let Some(TokenTree::Literal(literal)) = rest.next() else { return Ok(arguments) };
    let Ok(name) = syn::parse2::<LitStr>(TokenTree::Literal(literal).into()) else { return Ok(arguments) };
    let found = names.iter().position(|known| known.value() == name.value());
    let index = found.ok_or_else(|| unknown(kind, &name, names))?;
    let index = u16::try_from(index).map_err(|_| unknown(kind, &name, names))?;
    let rest: TokenStream = rest.collect();
    let head = quote_spanned!(Span::call_site()=> #path(#index));
    Ok(quote!(#head #rest))
}

fn unknown(kind: &str, name: &LitStr, names: &[LitStr]) -> syn::Error {
    let known: Vec<String> = names.iter().map(|name| format!("\"{}\"", name.value())).collect();
    let known = if known.is_empty() { format!("no {kind}s are declared") } else { known.join(", ") };
    syn::Error::new(name.span(), format!("unknown {kind}; the attribute names: {known}"))
}
