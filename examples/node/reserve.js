// Reserves stock: the step POST /reserve, and its undo, POST /release.
import { createHash } from "node:crypto";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { homedir } from "node:os";
import { join } from "node:path";

const soldOut = new Set(["Moon rock"]);
const directory = join(process.env.SHOP_DATA ?? join(homedir(), "shop-data"), "reservations");
mkdirSync(directory, { recursive: true });

// The answer to each idempotency key has a file: orderd repeats a call whose answer it has not seen.
const file = (key) => join(directory, createHash("sha256").update(key).digest("hex"));
const find = (key) => (existsSync(file(key)) ? JSON.parse(readFileSync(file(key), "utf8")).answer : undefined);
// Writes to disk what it did with an open file or directory.
function durably(path, flags, act = () => {}) {
  const descriptor = openSync(path, flags);
  act(descriptor);
  fsyncSync(descriptor);
  closeSync(descriptor);
}
function keep(key, answer) {
  durably(`${file(key)}.new`, "w", (descriptor) => writeFileSync(descriptor, JSON.stringify({ key, answer })));
  renameSync(`${file(key)}.new`, file(key));
  durably(directory, "r");
}

function reserve(key, order) {
  // This call is so late that its undo came first.
  if (find(`${key}/undo`)) return [409, "the reservation was released before it was made"];
  const missing = order.items.find((item) => soldOut.has(item.product));
  if (missing) return [409, `sold out: ${missing.product}`];
  return [200, { reservation: `res-${key}`, pieces: order.items.reduce((sum, item) => sum + item.quantity, 0) }];
}

function release(key) {
  // It may never have been reserved: then there is nothing to release, which is no error.
  return [200, { released: find(key.replace(/\/undo$/, ""))?.pieces ?? 0 }];
}

const actions = { "/reserve": reserve, "/release": release };

async function handle(request) {
  let body = "";
  for await (const chunk of request.setEncoding("utf8")) body += chunk;
  const [key, action] = [request.headers["idempotency-key"], actions[request.url]];
  if (request.method !== "POST" || !key || !action) return [404, "no such step"];
  const known = find(key);
  if (known) return [200, known];
  const [status, answer] = action(key, JSON.parse(body).order);
  if (status === 200) keep(key, answer);
  return [status, answer];
}

createServer(async (request, response) => {
  const [status, answer] = await handle(request).catch((error) => [500, error.message]);
  response.writeHead(status).end(typeof answer === "string" ? answer : JSON.stringify(answer));
}).listen(Number(process.env.PORT ?? 8082), process.env.HOST ?? "127.0.0.1");
