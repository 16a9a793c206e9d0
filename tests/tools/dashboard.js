// dashboard.js  deploy/grafana/dashboard.json against the types that Grafana itself publishes (@grafana/schema), a key or a value that it does not know
// being an error: Grafana takes any file, and shows an empty panel for a misspelt option. Run by scripts/check-watch.
const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const file = path.join(__dirname, "../../deploy/grafana/dashboard.json");
const { panels, ...rest } = JSON.parse(fs.readFileSync(file, "utf8"));
const kinds = { stat: "Stat", table: "Table", timeseries: "TimeSeries" };
const lines = [
  "import type * as grafana from '@grafana/schema';",
  ...Object.entries(kinds).map(([kind, name]) => `import type * as ${kind} from '@grafana/schema/dist/esm/raw/composable/${kind}/panelcfg/x/${name}PanelCfg_types.gen';`),
  // In a file an enum is its value; and of options Grafana fills in what is left out.
  "type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;",
  "type Some<T> = T extends (infer U)[] ? Some<U>[] : T extends object ? { [K in keyof T]?: Some<T[K]> } : T;",
  // What Grafana writes and reads, and its types leave to the data source.
  "type Variable = Omit<grafana.VariableModel, 'current'> & { definition?: string; current?: {} };",
  "type Annotation = grafana.AnnotationQuery & { expr: string; titleFormat?: string; textFormat?: string };",
  "type Target = grafana.DataQuery & { expr: string; legendFormat?: string; instant?: boolean; range?: boolean; format?: 'table' | 'time_series' };",
  "type Panel = Omit<grafana.Panel, 'options' | 'fieldConfig' | 'targets'> & { targets: Target[] };",
  "type Dashboard = Omit<grafana.Dashboard, 'templating' | 'annotations'> & { templating: { list: Variable[] }; annotations: { list: Annotation[] } };",
];
const expect = (type, value) => lines.push(`export const v${lines.length}: ${type} = ${JSON.stringify(value)};`);

expect("Plain<Dashboard>", rest);
for (const panel of panels) {
  if (panel.type === "row") {
    expect("Plain<grafana.RowPanel>", panel);
    continue;
  }
  if (!(panel.type in kinds)) throw new Error(`${panel.title}: no types are named here for a panel of type ${panel.type}`);
  const { options, fieldConfig, ...frame } = panel;
  const { custom, ...defaults } = fieldConfig.defaults;
  expect("Plain<Panel>", frame);
  expect("Plain<grafana.FieldConfigSource>", { ...fieldConfig, defaults });
  expect(`Some<Plain<${panel.type}.Options>>`, options);
  if (custom) expect(`Some<Plain<${panel.type}.FieldConfig>>`, custom);
}

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "sipsim-relay-dashboard-"));
try {
  fs.symlinkSync(process.env.NODE_PATH, path.join(folder, "node_modules"));
  fs.writeFileSync(path.join(folder, "dashboard.ts"), lines.join("\n"));
  fs.writeFileSync(path.join(folder, "tsconfig.json"), JSON.stringify({
    compilerOptions: { strict: true, noEmit: true, skipLibCheck: true, module: "esnext", moduleResolution: "bundler", target: "es2022", types: [] },
    files: ["dashboard.ts"],
  }));
  execFileSync(process.execPath, [path.join(process.env.NODE_PATH, "typescript/bin/tsc"), "-p", folder], { stdio: "inherit" });
  console.log(`dashboard: ${panels.length} panels are of Grafana's own types`);
} catch (error) {
  process.exitCode = 1; // What it found, tsc has said.
  if (error.status === undefined) console.error(error);
} finally {
  fs.rmSync(folder, { recursive: true });
}
