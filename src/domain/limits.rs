//! The limits of an order, in bytes or numbers.

/// Longest order id, in bytes. Message ids contain it, which AMQP limits to 255 bytes; this leaves room for suffixes
/// such as `/notification/processed`.
pub const MAX_ID_BYTES: usize = 200;

/// Longest product name, in bytes. Reports and their caches hold product names.
pub const MAX_PRODUCT_BYTES: usize = 1024;

/// Longest email address, in bytes: 64 for the local part, 255 for the domain (RFC 5321).
pub const MAX_EMAIL_BYTES: usize = 320;

/// Most fields of one order that orderd does not know. A field costs more memory than the bytes it has in the body.
pub const MAX_EXTRA_FIELDS: usize = 1_000;

/// Most fields of all lines of one order that orderd does not know. If there are more, the events contain none.
pub const MAX_ITEM_EXTRA_FIELDS: usize = 5_000;

/// Most bytes of an order's unknown fields, as JSON. Beyond it none is kept: events contain them, and so every event is smaller
/// than 1 MiB.
pub const MAX_EXTRA_BYTES: usize = 256 * 1024;

/// Most pieces in one order. No real order has more, and a sum of quantities, which has 64 bits, has room for nine
/// million such orders.
pub const MAX_QUANTITY: i64 = 1_000_000_000_000;

/// Most lines of one order.
pub const MAX_ITEMS: usize = 1_000;

/// Most bytes of the names of all products of an order, as JSON: events contain them, and so every event is smaller than
/// 1 MiB. The names of 1,000 lines may have 500 bytes each.
pub const MAX_PRODUCTS_BYTES: usize = 512 * 1024;
