// Which events were handled: the last 100,000 ids. A restart forgets them, so where a repetition would do harm, make the id a unique key of
// your database and write it in the same transaction as what the handling changes.
const ids = new Set();

// Calls `handle` unless the event with this id was handled before. If it throws, the event counts as not handled.
exports.once = async (event, handle) => {
  if (ids.has(event.id)) return;
  await handle(event);
  ids.add(event.id);
  if (ids.size > 100_000) ids.delete(ids.values().next().value); // A Set keeps its order: the oldest goes.
};
