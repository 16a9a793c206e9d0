// The same as validate.py, by Ajv in its strict mode, which is its default and refuses keywords that it does not know:
//
//     scripts/node tests/tools/node tests/tools/validate.js FILE
const fs = require("fs");
const path = require("path");
const Ajv2020 = require("ajv/dist/2020");

const schemas = path.join(__dirname, "../../schemas");
const files = { envelope: "envelope", configuration: "relay.toml" };
const validators = {};

function validator(name) {
  if (!validators[name]) {
    const file = path.join(schemas, `${files[name] || "events/" + name}.schema.json`);
    validators[name] = new Ajv2020().compile(JSON.parse(fs.readFileSync(file, "utf8")));
  }
  return validators[name];
}

const pairs = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const problems = pairs.map(([name, value]) => {
  const valid = validator(name)(value);
  return valid ? null : validator(name).errors.map((error) => `${error.instancePath} ${error.message}`).join("; ");
});
console.log(JSON.stringify(problems));
