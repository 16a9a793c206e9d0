// Prints what @asyncapi/parser has against a document, as a JSON list. Errors and warnings alike.
//
//     scripts/node tests/tools/node tests/tools/asyncapi.js docs/asyncapi.yaml
const { Parser, fromFile } = require("@asyncapi/parser");

fromFile(new Parser(), process.argv[2])
  .parse()
  .then(({ document, diagnostics }) => {
    const problems = diagnostics.filter(({ severity }) => severity <= 1).map(({ code, message, path, range }) => `${range.start.line + 1}: ${code}: ${message} (${path.join(".")})`);
    if (!document && !problems.length) problems.push("it is no AsyncAPI document");
    console.log(JSON.stringify(problems, null, 1));
  });
